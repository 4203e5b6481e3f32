"""The classes of a model: their names, and which class a dataset's label means."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from timm.data import ImageNetInfo, infer_imagenet_subset


@dataclass(frozen=True)
class ClassNames:
    """A model's classes in the order of its outputs, by name and by what else labels may say."""

    names: tuple[str, ...]
    synonyms: tuple[str, ...] = ()

    @classmethod
    def of_timm(cls, classes: int, pretrained_cfg: Mapping[str, object]) -> "ClassNames":
        """timm's own names: the weights' label names, ImageNet's, or else the class indices."""
        names = pretrained_cfg.get("label_names")
        if isinstance(names, list | tuple):
            if len(names) != classes:
                raise ValueError(f"label_names holds {len(names)} names for {classes} classes")
            return cls(tuple(str(name) for name in names))
        subset = infer_imagenet_subset({"num_classes": classes})
        if subset is None:
            return cls(tuple(str(index) for index in range(classes)))
        info = ImageNetInfo(subset)
        return cls(tuple(info.label_descriptions()), tuple(info.label_names()))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_indices(self) -> bool:
        """Whether nothing names the classes but their indices."""
        return self.names == tuple(str(index) for index in range(len(self.names)))

    @cached_property
    def _index(self) -> Mapping[str, int]:
        """Every unambiguous name: ImageNet-1k has two classes named crane, so crane means none."""
        counts = Counter(self.names)
        index = {name: i for i, name in enumerate(self.names) if counts[name] == 1}
        return {synonym: i for i, synonym in enumerate(self.synonyms)} | index

    def index(self, label: str | int | None) -> int | None:
        """The class index that a label means, by name or number; None where it is no class here."""
        if isinstance(label, str):
            return self._index.get(label)
        if label is None or isinstance(label, bool):
            return None
        return label if 0 <= label < len(self.names) else None
