"""Which images a run explains: the same rows from any format, and only new ones of a grown set."""

import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import ConfigurationError, Exit, ExplainConfig, InputConfig, MethodConfig
from storage.locations import Location
from storage.manifests import NothingNew
from storage.runs import open_run

Runner = Callable[[ExplainConfig], tuple[Exit, str]]
# What a row says of where its image lay; a manifest's is another run than a folder's.
OF_THE_SOURCE = {"run", "uri", "image_id"}


def packed(folder: Path, to: Path) -> dict[str, InputConfig]:
    """The pictures of a folder in every format, in the same order."""
    paths = sorted(folder.rglob("*.*g"), key=lambda path: path.relative_to(folder).as_posix())
    labels = [path.parent.name for path in paths]
    uris = [str(path) for path in paths]
    pq.write_table(pa.table({"uri": uris, "label": labels}), to / "list.parquet")
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = pa.table({"image": images, "label": labels})
    pq.write_table(table, to / "images.parquet", row_group_size=7)
    with tarfile.open(to / "images.tar", "w") as file:
        for number, path in enumerate(paths):
            file.add(path, f"{number:04d}{path.suffix}")
            label = path.parent.name.encode()
            info = tarfile.TarInfo(f"{number:04d}.cls")
            info.size = len(label)
            file.addfile(info, io.BytesIO(label))
    lists = {name: InputConfig(manifest=str(to / name)) for name in ("list.parquet", "images.tar")}
    inside = InputConfig(manifest=str(to / "images.parquet"), uri_column="image")
    return {"images.parquet": inside, **lists}


def test_the_same_rows_come_out_of_every_format(
    run_job: Runner,
    config: ExplainConfig,
    finished: ExplainConfig,
    image_folder: Path,
    tmp_path: Path,
    rows_of,
) -> None:
    runs = {"folder": finished}
    for name, images in packed(image_folder, tmp_path).items():
        runs[name] = replace(config, input=images, out=str(tmp_path / f"run-{name}"))
        code, told = run_job(runs[name])
        assert code is Exit.COMPLETE, told
    found = {name: rows_of(Location(run.out)) for name, run in runs.items()}
    assert len(found["folder"]) == 60
    for name, rows in found.items():
        for mine, theirs in zip(found["folder"], rows, strict=True):
            # Batches of another length round otherwise.
            numbers = {k for k, value in mine.items() if isinstance(value, float | list)}
            assert {k for k in mine if mine[k] != theirs[k]} - numbers <= OF_THE_SOURCE, name
            for column in numbers:
                assert mine[column] == pytest.approx(theirs[column], rel=1e-3, abs=1e-3), column
    # One tar is one part, and row groups of seven rows make parts of 14: a shard is 16 rows.
    parts = {name: len(open_run(Location(run.out)).committed()) for name, run in runs.items()}
    assert parts == {"folder": 4, "list.parquet": 4, "images.tar": 1, "images.parquet": 5}
    # The rows of a plain list are read where they are.
    assert not (tmp_path / "run-list.parquet" / "manifest.parquet").exists()
    assert (tmp_path / "run-images.tar" / "manifest.parquet").exists()


def test_a_grown_dataset_explains_only_its_new_rows(
    run_job: Runner, finished: ExplainConfig, image_folder: Path, tmp_path: Path, rows_of
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(image_folder, grown)
    more = replace(
        finished,
        input=InputConfig(images=str(grown), extend=finished.out),
        out=str(tmp_path / "more"),
    )
    with pytest.raises(NothingNew, match="holds no image that the run to extend does not have"):
        run_job(more)
    shutil.copy(grown / "ant" / "003.jpg", grown / "bee" / "new.jpg")
    code, told = run_job(more)
    assert code is Exit.COMPLETE, told
    assert [row["image_id"] for row in rows_of(Location(more.out))] == ["bee/new.jpg"]
    assert open_run(Location(more.out)).description["config"]["input"]["extend"] == finished.out
    other = replace(more, method=MethodConfig(block=-1), out=str(tmp_path / "other"))
    with pytest.raises(ConfigurationError, match=r"(?s)has other settings:.*method\.block: run ha"):
        run_job(other)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished.out, unfinished)
    (unfinished / "summary.json").unlink()
    early = replace(more, input=replace(more.input, extend=str(unfinished)))
    with pytest.raises(ConfigurationError, match="is unfinished: finish it with its own command"):
        run_job(early)


def test_a_sample_of_one_class_is_explained(
    run_job: Runner, config: ExplainConfig, tmp_path: Path, rows_of
) -> None:
    few = replace(config.input, classes="bee, cat", sample=5, where="label <> 'cat'")
    config = replace(config, input=few, out=str(tmp_path / "few"))
    with pytest.raises(ConfigurationError, match="no row has the label cat; there are ant, bee"):
        run_job(config)
    config = replace(config, input=replace(few, classes="bee"))
    assert run_job(config)[0] is Exit.COMPLETE
    assert {row["label_name"] for row in rows_of(Location(config.out))} == {"bee"}
    assert len(rows_of(Location(config.out))) == 5
