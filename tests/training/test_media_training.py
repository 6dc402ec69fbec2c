"""Vision and speech models: trained, stored, opened again, merged and used on the files of a user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.registry import parse
from deltatune.data import read
from deltatune.models.loading import load_backbone
from deltatune.store.merged_model import save_merged
from deltatune.tasks import Classify
from deltatune.tasks.collator import collator_for
from deltatune.training import Settings
from deltatune.training.job import Job, prepare, record_of, run
from deltatune.training.open_session import open_adapter
from support.media import draw_bars, image_processor, play_tones, save_vit, save_wav2vec2

pytest.importorskip("PIL.Image")
pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bars")
    for seed, (split, rows) in enumerate({"train": 32, "validation": 12, "test": 20}.items()):
        draw_bars(folder / split, rows, seed)
    return folder


def trained(model: Path, data: Path, out: Path, method: str, **settings: Any) -> dict[str, Any]:
    settings = {"epochs": 8, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32", **settings}
    job = Job(str(model), read(data), method, settings=Settings(**settings), source=str(data))
    ready = prepare(job)
    return run(ready, out, record_of(ready, str(data)))


def test_lora_learns_from_images_and_the_run_opens_again(vit: Path, bars: Path, tmp_path: Path) -> None:
    metrics = trained(vit, bars, tmp_path / "run", "LoRA(r=4, sites='*')")
    assert metrics["test"]["accuracy"] >= 0.9
    session = open_adapter(tmp_path / "run")
    assert isinstance(session.task, Classify)
    assert (session.task.inputs, session.task.text) == ("image", ("image",))
    assert "max_seconds" not in session.task.to_json()
    files = sorted((bars / "test").rglob("*.png"))
    rows = [{"image": str(file)} for file in files]
    answers = session.task.decode(session.predict(session.encode(rows, labelled=False)))
    right = np.mean([answer["label"] == file.parent.name for answer, file in zip(answers, files, strict=True)])
    assert right == metrics["test"]["accuracy"]
    known = session.adapter.trained_rows
    copied = read(bars).train  # the same bytes
    assert known is not None
    assert set(session.encode(copied).row_hashes.tolist()) == set(known.train.tolist())  # type: ignore[union-attr]


def test_another_processor_is_refused(vit: Path, bars: Path, tmp_path: Path) -> None:
    trained(vit, bars, tmp_path / "run", "Probe()", epochs=1)
    other = save_vit(tmp_path / "other")
    assert open_adapter(tmp_path / "run", str(other)).model == str(other)
    image_processor(image_mean=[0.1, 0.1, 0.1]).save_pretrained(other)
    with pytest.raises(DeltatuneError, match="trained with another processor than this model's"):
        open_adapter(tmp_path / "run", str(other))


def test_encoded_rows_hold_no_pixels(vit: Path, bars: Path) -> None:
    _, processor = load_backbone(str(vit))
    data = read(bars)
    task = Classify(labels=data.labels, text=("image",), inputs="image")
    encoded = task.encode(data.train, processor)
    assert {type(value) for row in encoded for value in row.values()} <= {type(data.train[0]["image"]), int}
    batch = collator_for(torch.nn.Identity(), processor, encoded[0])(encoded.rows[:3])
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["labels"].tolist() == [row["label"] for row in encoded.rows[:3]]


def test_what_a_model_does_not_read_is_refused(vit: Path, bars: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30)))
    wanted = {
        "the model reads image files, and these rows hold texts": Job(str(vit), read(texts)),
        "max_length: it is for texts": Job(str(vit), read(bars), task={"max_length": 8}),
        "no token embeddings to put a prompt at": Job(str(vit), read(bars), "Prompt(length=2)"),
        "which reads image files": Job(str(vit), read(bars), task={"template": "{image} is {mask}", "words": {}}),
    }
    for words, job in wanted.items():
        if "template" in job.task:
            with pytest.raises(DeltatuneError, match="template: it is for texts"):
                prepare(job)
            continue
        with pytest.raises(DeltatuneError, match=words):
            prepare(job)


def test_the_wrong_processor_of_a_model_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    folder = save_vit(tmp_path)
    image_processor().save_pretrained(folder)
    load_backbone(str(folder))
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(DeltatuneError, match="does not take what its processor gives, pixel_values"):
        load_backbone(str(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DeltatuneError, match=r"no usable image processor; copy its preprocessor_config\.json"):
        load_backbone(str(folder))


def test_grey_models_read_grey_pixels(tmp_path: Path, bars: Path) -> None:
    folder = save_vit(tmp_path, num_channels=1)
    image_processor(image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    _, processor = load_backbone(str(folder))
    row = processor.row(next(bars.rglob("*.png")))  # type: ignore[attr-defined]
    assert row.shape == (1, 32, 32)


@pytest.mark.parametrize("masked", [True, False])
def test_a_sound_does_not_depend_on_the_others_of_its_batch(tmp_path: Path, masked: bool) -> None:
    model, processor = load_backbone(str(save_wav2vec2(tmp_path / "model", masked)))
    data = read(play_tones(tmp_path / "tones", 6), strict=False)
    rows = [row for split in data.splits().values() for row in split]
    task = Classify(labels=("high", "low"), text=("audio",), inputs="audio", max_seconds=0.2)
    host = Host(model)
    host.attach("a", parse("LoRA(r=2)"), head=task.make_head(model.config, 0))  # type: ignore[arg-type]
    from deltatune.training.inference.prediction import predict

    together = predict(host, "a", task, rows, processor, precision="float32")
    alone = np.concatenate([predict(host, "a", task, [row], processor, precision="float32") for row in rows])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_a_sound_that_is_shorter_than_one_state_is_named(tmp_path: Path) -> None:
    import soundfile

    model, processor = load_backbone(str(save_wav2vec2(tmp_path / "model")))
    least = processor.shortest  # type: ignore[union-attr]
    for name, samples in (("short", least - 1), ("long", least)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(samples, 0.1), 16_000)
    row = processor.row(str(tmp_path / "long.wav"))  # type: ignore[union-attr]
    assert model(**processor.batch([row])).last_hidden_state.shape[1] == 1  # type: ignore[union-attr]
    with pytest.raises(DeltatuneError, match=rf"short.wav {least - 1} samples .* at least {least}"):
        processor.row(str(tmp_path / "short.wav"))  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_speech_is_learned_and_the_longest_sound_is_inferred(tmp_path: Path, masked: bool) -> None:
    model = save_wav2vec2(tmp_path / "model", masked)
    for seed, (split, rows) in enumerate({"train": 32, "validation": 12, "test": 20}.items()):
        play_tones(tmp_path / "tones" / split, rows, seed)
    metrics = trained(model, tmp_path / "tones", tmp_path / "run", "LoRA(r=4, sites='*')", epochs=12)
    assert metrics["test"]["accuracy"] >= 0.9
    session = open_adapter(tmp_path / "run")
    assert isinstance(session.task, Classify)
    assert session.task.max_seconds == 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "Full()",
        "Probe()",
        "BitFit()",
        "IA3()",
        "Bottleneck(size=8)",
        "Prefix(length=4)",
        "TopLayers(layers=1)",
        "DoRA(r=4)",
    ],
)
def test_methods_train_on_images(vit: Path, bars: Path, tmp_path: Path, method: str) -> None:
    metrics = trained(vit, bars, tmp_path / "run", method, epochs=2)
    again = open_adapter(tmp_path / "run")
    assert again.score(again.encode(read(bars).test)) == metrics["test"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(vit: Path, bars: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, *_: Any) -> None:
        if step >= 6:
            raise Stop

    settings = Settings(epochs=3, batch_size=16, learning_rate=5e-3, precision="float32")
    for name, on_step in (("whole", None), ("cut", stop)):
        ready = prepare(Job(str(vit), read(bars), "LoRA(r=4)", settings=settings, source=str(bars)))
        try:
            run(ready, tmp_path / name, record_of(ready, str(bars)), on_step)  # type: ignore[arg-type]
        except Stop:
            trained(vit, bars, tmp_path / name, "LoRA(r=4)", epochs=3)
    files = [tmp_path / name / "adapter" / "adapter.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_merged_classifier_is_what_pipelines_load(vit: Path, bars: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    trained(vit, bars, tmp_path / "run", "LoRA(r=4)", epochs=2)
    session = open_adapter(tmp_path / "run")
    merged = save_merged(session.host, session.name, tmp_path / "merged", session.tokenizer)
    assert merged.classifier == "ViTForImageClassification"
    file = str(next((bars / "test").rglob("*.png")))
    answer = session.task.decode(session.predict([{"image": file}]))[0]
    pipe = pipeline("image-classification", str(tmp_path / "merged"), image_processor=session.tokenizer.settings)  # type: ignore[attr-defined]
    scores = {each["label"]: each["score"] for each in pipe(file)}
    assert all(abs(scores[label] - score) < 0.01 for label, score in answer["scores"].items())


@pytest.mark.slow
def test_a_merged_speech_classifier_has_an_identity_before_its_pooling(tmp_path: Path) -> None:
    for masked in (True, False):
        model, processor = load_backbone(str(save_wav2vec2(tmp_path / f"model{masked}", masked)))
        task = Classify(labels=("high", "low"), text=("audio",), inputs="audio")
        host = Host(model)
        host.attach("a", parse("LoRA(r=2)"), head=task.make_head(model.config, 0))  # type: ignore[arg-type]
        merged = save_merged(host, "a", tmp_path / f"merged{masked}", processor)
        assert merged.classifier == "Wav2Vec2ForSequenceClassification"
        assert merged.difference < 1e-5
        assert load_backbone(str(merged.folder))[1].fingerprint == processor.fingerprint  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_csv_of_numbers_and_one_of_several_classes(vit: Path, bars: Path, tmp_path: Path) -> None:
    names = sorted(bars.rglob("*.png"))
    numbers = [f"{name},{(name.parent.name == 'lying') + 0.01 * i}" for i, name in enumerate(names)]
    sets = [f'{name},"[""bar"", ""{name.parent.name}""]"' for name in names]
    for file, lines, kind in (("numbers.csv", numbers, "number"), ("sets.csv", sets, "many")):
        (tmp_path / file).write_text("\n".join(["image,label", *lines]))
        data = read(tmp_path / file)
        assert (data.kind, data.inputs) == (kind, "image")
        metrics = trained(vit, tmp_path / file, tmp_path / kind, "LoRA(r=4)", epochs=2)
        assert all(np.isfinite(score) for score in metrics["test"].values())
        assert open_adapter(tmp_path / kind).task.label_kind == kind


@pytest.mark.slow
def test_the_command_line_predicts_files_folders_and_tables(vit: Path, bars: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from deltatune.cli.app import app

    trained(vit, bars, tmp_path / "run", "Probe()", epochs=1)
    folder, files = bars / "test" / "lying", sorted((bars / "test" / "lying").glob("*.png"))
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["image", *map(str, files)]))
    answers = []
    for named in ([str(folder)], [str(file) for file in files], [str(table)]):
        result = CliRunner().invoke(app, ["predict", "--adapter", str(tmp_path / "run"), *named])
        assert result.exit_code == 0, result.output
        answers.append([line for line in result.stdout.splitlines() if line.startswith("{")])
    assert len(answers[0]) == len(files)
    assert answers[0] == answers[1] == answers[2]
    result = CliRunner().invoke(app, ["predict", "--adapter", str(tmp_path / "run"), str(table), str(table)])
    assert result.exit_code != 0
