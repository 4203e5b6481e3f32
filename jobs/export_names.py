"""The names of a run's classes, by index, as far as its rows tell them."""

from collections import Counter
from collections.abc import Mapping

from jobs.export_plan import Exported
from storage.parts import in_order

READERS = 16
# A model's own names first; a label's may be a number or a synonym.
NAMED_BY = (("predicted", "predicted_name"), ("target", "target_name"), ("label", "label_name"))


def class_names(exported: Exported) -> list[str]:
    """A name for each class index from 0 to the largest that a row has; no two are the same.

    The index follows a name that several classes have. A class that no row names is `class 17`.
    """
    found: list[dict[int, str]] = [{} for _ in NAMED_BY]
    columns = [column for pair in NAMED_BY for column in pair]
    run = exported.run
    parts = in_order(lambda i: run.read_part(i, columns), sorted(run.committed()), READERS)
    for part in parts:
        for names, (index, name) in zip(found, NAMED_BY, strict=True):
            pairs = part.select([index, name]).group_by([index, name]).aggregate([])
            known = zip(pairs[index].to_pylist(), pairs[name].to_pylist(), strict=True)
            names |= {i: text for i, text in known if i is not None and text is not None}
    return distinct({**found[2], **found[1], **found[0]})


def distinct(names: Mapping[int, str]) -> list[str]:
    """One name an index, up to the largest one."""
    every = [names.get(i, f"class {i}") for i in range(max(names, default=-1) + 1)]
    counts = Counter(every)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(every)]
