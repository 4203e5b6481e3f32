"""ViRelAy's own loader and server open the project, and show the run's maps on its crops."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from virelay.model import Project, Workspace
from virelay.server import Server

from explainer.preprocess import Preprocessing, decode
from jobs import export_virelay
from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export import export
from jobs.export_embedding import clusters, embeddings


@pytest.fixture(scope="module")
def folder(audited_top, tmp_path_factory) -> Path:
    """The project of a run with three targets an image, of which the first counts."""
    out = tmp_path_factory.mktemp("virelay") / "out"
    request = ExportConfig(str(audited_top.root), str(out), to="virelay")
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    return out


@pytest.fixture
def workspace(folder) -> Iterator[Workspace]:
    workspace = Workspace()
    workspace.add_project(str(folder / "project.yaml"))
    yield workspace
    workspace.close()


@pytest.fixture
def project(workspace) -> Project:
    return workspace.get_project(workspace.get_project_names()[0])


def images_of(root: Path) -> list[dict]:
    rows = pq.read_table(root / "explanations").to_pylist()
    return [row for row in rows if row["target_rank"] == 0]


def test_samples_are_the_crops_and_attributions_their_maps(project, folder, audited_top):
    rows = images_of(audited_top.root)
    stored = json.loads((audited_top.root / "run.json").read_text())["fingerprint_of"]
    values = stored["preprocessing"].items()
    preprocessing = Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in values})
    assert len(project.dataset) == len(rows) == 23
    assert project.model == stored["model"]["name"]
    for index, row in enumerate(rows):
        sample, attribution = project.get_sample(index), project.get_attribution(index)
        crop = decode(Path(row["uri"]).read_bytes(), preprocessing).crop
        np.testing.assert_array_equal(sample.data, crop.transpose(1, 2, 0))
        np.testing.assert_allclose(attribution.data.sum(2).ravel(), row["saliency"], atol=1e-6)
        label = "(no label of the model)" if row["label"] is None else row["label_name"]
        assert [each.name for each in sample.labels] == [label]
        assert attribution.prediction.argmax() == row["predicted"]
        assert attribution.prediction.max() == pytest.approx(row["probability"])
    index = pd.read_csv(folder / "images.csv")
    assert index["row"].to_list() == [row["row"] for row in rows]
    assert index["image_id"].to_list() == [row["image_id"] for row in rows]


def test_each_analysis_has_the_maps_of_a_class(project, audited_top):
    assert project.get_analysis_methods() == ["Spectral"]
    (category,) = project.get_analysis_categories("Spectral")
    rows = images_of(audited_top.root)
    assert category.human_readable_name == rows[0]["target_name"]
    assert project.get_analysis_embedding_names("Spectral") == ["pca", "spectral"]
    for number in export_virelay.CLUSTERINGS:
        found = project.get_analysis("Spectral", category.name, f"kmeans-{number}", "spectral")
        assert found.attribution_indices.tolist() == list(range(23))
        assert found.embedding.shape == (23, 2)
        assert set(found.clustering) == set(range(number))


def test_its_server_shows_images_heatmaps_and_analyses(workspace):
    client = Server(workspace).app.test_client()
    assert len(client.get("/api/projects").json) == 1
    analysis = client.get(
        "/api/projects/0/analyses/Spectral?category=00001&clustering=kmeans-2&embedding=pca"
    )
    assert len(analysis.json["embedding"]) == 23
    for place in ("dataset/3/image", "attributions/3/heatmap?superimpose=true&colorMap=jet"):
        answer = client.get(f"/api/projects/0/{place}")
        assert answer.status_code == 200
        with Image.open(io.BytesIO(answer.data)) as picture:
            assert picture.size == (64, 64)
    assert client.get("/api/projects/0/attributions/3").json["labels"]


def test_the_same_export_makes_the_same_files(audited_top, folder, tmp_path):
    request = ExportConfig(str(audited_top.root), str(tmp_path / "again"), to="virelay")
    export(request, Console(file=io.StringIO()))
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_too_few_or_too_many_images_are_refused(audited_top, tmp_path, monkeypatch):
    request = ExportConfig(str(audited_top.root), str(tmp_path / "out"), to="virelay", per_class=7)
    with pytest.raises(ConfigurationError, match="and no class has 8 that differ"):
        export(request, Console(file=io.StringIO()))
    monkeypatch.setattr(export_virelay, "MOST_BYTES", 60_000)
    with pytest.raises(ConfigurationError, match=r"the crops of 7 images have .* give a --per-cl"):
        export(request, Console(file=io.StringIO()))


def test_maps_of_two_kinds_are_two_clusters():
    random = np.random.default_rng(0)
    maps = random.random((40, 16)).astype(np.float32) * 0.1
    kinds = np.arange(40) % 3 == 0
    maps[kinds, :4] += 0.8
    for name, points in embeddings(maps).items():
        found = clusters(points, 2)
        assert (found == found[0]).tolist() == kinds.tolist(), name
    assert set(clusters(embeddings(np.ones((9, 4), np.float32))["pca"], 5)) == {0}
