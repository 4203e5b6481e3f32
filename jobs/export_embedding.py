"""Where a class's maps lie beside each other, and in which clusters."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import SpectralEmbedding
from sklearn.metrics import pairwise_distances

CLUSTERINGS = (2, 3, 4, 5)
Points = NDArray[np.float64]


def embeddings(maps: NDArray[np.float32]) -> Mapping[str, Points]:
    """Two coordinates for each map, [maps, 2], by the name of what finds them.

    `spectral` is that of SpRAy (Lapuschkin et al. 2019), on a Gaussian of the maps' distance whose
    width is their median distance.
    """
    distances = pairwise_distances(maps.astype(np.float64))
    width = float(np.median(distances[np.triu_indices(len(maps), 1)])) or 1.0
    spectral = SpectralEmbedding(2, affinity="precomputed", random_state=0)
    with np.errstate(invalid="ignore"):  # of equal maps it divides their variance, which is none
        pca = PCA(2, svd_solver="full").fit_transform(maps.astype(np.float64))
    return {
        "pca": np.asarray(pca),
        "spectral": np.asarray(spectral.fit_transform(np.exp(-((distances / width) ** 2)))),
    }


def clusters(points: Points, count: int) -> NDArray[np.int32]:
    """The number of each point's cluster, from 0; fewer clusters where fewer points differ."""
    distinct = len(np.unique(points.round(9), axis=0))
    found = KMeans(min(count, distinct), n_init=10, random_state=0).fit_predict(points)
    return np.asarray(found, np.int32)
