"""Loading real (tiny) models and asking them through the pipeline: answers, gates, what is shown of them."""

import asyncio
import gc
import hashlib
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service import loading
from service.engine.base import ProviderInfo, Tensor
from service.engine.ort import OrtEngine
from service.errors import EngineFailed, InvalidImage, NoImageSignature
from service.messages import Classification, InferenceResult
from service.model import ModelDescription
from service.server import InferenceServer
from tests.support import bodies, tiny_models
from tests.support.tiny_models import (
    UNIT,
    best_labels,
    classify,
    damaged_picture,
    picture,
    serving,
    write_model,
)


def manifest(*, preset: str = "unit", **tables: dict[str, Any]) -> str:
    """A manifest with one more [table] for each keyword."""
    lines = ["[input]", f'preset = "{preset}"', 'resize = "stretch"']
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines)


def reason(server: InferenceServer, name: str = "model") -> str:
    return server.repository.status(name).reason


def description(server: InferenceServer, name: str = "model") -> ModelDescription:
    status = server.repository.status(name)
    loaded = next(version.loaded for version in status.versions if version.version == status.default)
    assert loaded is not None
    return loaded.description


def scores(result: InferenceResult) -> list[dict[str, float]]:
    return [
        {prediction.label: round(prediction.score, 4) for prediction in item.predictions}
        for item in result.items
        if isinstance(item, Classification)
    ]


# Answers of every kind of graph


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        ({}, UNIT),
        ({"layout": "nhwc"}, UNIT),
        ({"dtype": "float16"}, UNIT),
        ({"dtype": "float64"}, UNIT),
        ({"dtype": "uint8"}, manifest(preset="raw")),
        ({"dtype": "uint8", "layout": "nhwc"}, manifest(preset="raw")),
        ({"batch": 1}, UNIT),
        ({"ending": "Softmax"}, manifest(output={"activation": '"none"'})),
        ({"size": ("h", "w")}, UNIT + "size = [8, 8]"),
        ({"size": (5, 11)}, UNIT),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
async def test_colours_are_told_apart_by_every_kind_of_graph(tmp_path: Path, graph: dict[str, Any], text: str) -> None:
    write_model(tmp_path, "model", tiny_models.classifier(**graph), manifest=text)
    async with serving(tmp_path) as server:
        assert reason(server) == ""
        result = await classify(server.pipeline, "model", *map(picture, ("red", "blue", "green", "blue")))
        assert best_labels(result) == ["red", "blue", "green", "blue"]
        (first, *_) = scores(result)
        certain = np.exp(tiny_models.GAIN) / (np.exp(tiny_models.GAIN) + 2)
        assert first == pytest.approx({"red": certain, "green": (1 - certain) / 2, "blue": (1 - certain) / 2}, abs=2e-3)


async def test_a_bgr_model_is_fed_blue_first(tmp_path: Path) -> None:
    write_model(tmp_path, "model", manifest=UNIT + 'color = "bgr"', labels=("blue", "green", "red"))
    async with serving(tmp_path) as server:
        assert best_labels(await classify(server.pipeline, "model", picture("red"), picture("blue"))) == ["red", "blue"]


async def test_a_gray_model_is_fed_one_channel(tmp_path: Path) -> None:
    graph = tiny_models.classifier(channels=1, classes=2, matrix=[[-4, 4]], bias=[2, -2])
    write_model(tmp_path, "model", graph, labels=("dark", "light"))
    async with serving(tmp_path) as server:
        result = await classify(server.pipeline, "model", picture("white"), picture("black"))
        assert best_labels(result) == ["light", "dark"]


async def test_one_sigmoid_unit_answers_with_two_labels(tmp_path: Path) -> None:
    text = manifest(output={"task": '"binary"', "activation": '"none"'})
    write_model(tmp_path, "model", tiny_models.one_unit(), manifest=text, labels=("dark", "light"))
    async with serving(tmp_path) as server:
        result = await classify(server.pipeline, "model", picture("white"), picture("black"))
        assert best_labels(result) == ["light", "dark"]
        for row in scores(result):
            assert sum(row.values()) == pytest.approx(1.0, abs=1e-3)


async def test_one_unit_of_logits_is_taken_through_a_sigmoid(tmp_path: Path) -> None:
    text = manifest(output={"task": '"binary"'})
    write_model(tmp_path, "model", tiny_models.one_unit(ending=None), manifest=text, labels=("dark", "light"))
    async with serving(tmp_path) as server:
        (row,) = scores(await classify(server.pipeline, "model", picture("white")))
        assert row["light"] == pytest.approx(1 / (1 + np.exp(-tiny_models.GAIN)), abs=1e-3)


async def test_a_multilabel_model_answers_with_every_label_over_its_threshold(tmp_path: Path) -> None:
    graph = tiny_models.classifier(matrix=np.eye(3) * 8, bias=-4)
    write_model(tmp_path, "model", graph, manifest=manifest(output={"task": '"multilabel"'}))
    async with serving(tmp_path) as server:
        result = await classify(server.pipeline, "model", *map(picture, ("yellow", "black", "white")))
        assert [set(row) for row in scores(result)] == [{"red", "green"}, set(), {"red", "green", "blue"}]


async def test_a_temperature_softens_the_scores(tmp_path: Path) -> None:
    write_model(tmp_path, "sharp")
    write_model(tmp_path, "soft", manifest=manifest(output={"temperature": 4.0}))
    async with serving(tmp_path) as server:
        ((sharp,), (soft,)) = [
            scores(await classify(server.pipeline, name, picture("red"))) for name in ("sharp", "soft")
        ]
        assert sharp["red"] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-3)
        assert soft["red"] == pytest.approx(np.exp(1) / (np.exp(1) + 2), abs=1e-3)


async def test_the_output_that_the_manifest_names_is_the_one_read(tmp_path: Path) -> None:
    graph = tiny_models.classifier()
    logits = onnx.helper.make_tensor_value_info("means", onnx.TensorProto.FLOAT, ("N", 3))
    graph.graph.output.insert(0, logits)
    write_model(tmp_path, "model", graph, manifest=manifest(output={"tensor": '"scores"'}))
    async with serving(tmp_path) as server:
        (row,) = scores(await classify(server.pipeline, "model", picture("red")))
        assert row["red"] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-3)


# Images


async def test_among_several_images_the_bad_one_has_its_error_in_its_place(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        result = await classify(server.pipeline, "model", picture("red"), damaged_picture(), picture("blue"))
        assert best_labels(result) == ["red", "invalid_image", "blue"]


async def test_a_single_bad_image_raises(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    async with serving(tmp_path) as server:
        with pytest.raises(InvalidImage):
            await classify(server.pipeline, "model", damaged_picture())


async def test_many_requests_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    write_model(tmp_path, "model")
    names = [("red", "green", "blue")[number % 3] for number in range(90)]
    async with serving(tmp_path) as server:
        results = await asyncio.gather(*(classify(server.pipeline, "model", picture(name)) for name in names))
        assert [best_labels(result) for result in results] == [[name] for name in names]


async def test_an_image_that_makes_the_network_overflow_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    text = manifest(output={"activation": '"none"'}, batching={"max_batch_size": 2, "max_queue_delay_ms": 900.0})
    write_model(tmp_path, "model", tiny_models.inverse(), manifest=text)
    async with serving(tmp_path) as server:
        asked = [classify(server.pipeline, "model", picture(color)) for color in ("white", "black")]  # a batch of two
        white, black = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(black, EngineFailed)
        assert isinstance(white, InferenceResult)
        assert scores(white) == [{"red": 1.0, "green": 1.0, "blue": 1.0}]


# Models that take tensors


@pytest.mark.parametrize("text", [None, "schema = 1\n", '[input]\ntensor = "image"\n'])
async def test_a_model_without_preprocessing_is_ready_and_takes_no_images(tmp_path: Path, text: str | None) -> None:
    write_model(tmp_path, "model", manifest=text, labels=None)
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == ["model"]
        with pytest.raises(NoImageSignature, match="takes tensors"):
            await classify(server.pipeline, "model", picture("red"))
        assert description(server).spec.input is None
        assert description(server).labels == ("0", "1", "2")


async def test_a_graph_that_images_cannot_feed_is_served_to_tensors(tmp_path: Path) -> None:
    write_model(tmp_path, "model", tiny_models.adder(), manifest=None, labels=None)
    async with serving(tmp_path) as server:
        assert reason(server) == ""
        assert [tensor.name for tensor in description(server).engine.inputs] == ["a", "b"]


# Gates


@pytest.mark.parametrize("batch", ["N", 1])
async def test_an_activation_that_would_be_applied_twice_is_refused(tmp_path: Path, batch: str | int) -> None:
    write_model(tmp_path, "model", tiny_models.classifier(ending="Softmax", batch=batch))
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == []
        assert 'output.activation = "softmax"' in reason(server)
        assert 'set activation = "none"' in reason(server)


async def test_an_activation_that_would_be_applied_twice_is_refused_however_sure_the_network_is(tmp_path: Path) -> None:
    graph = tiny_models.classifier(ending="Softmax", matrix=np.eye(3) * 1e6)
    write_model(tmp_path, "model", graph)
    async with serving(tmp_path) as server:
        assert 'set activation = "none"' in reason(server)


async def test_logits_that_only_look_like_probabilities_one_by_one_are_no_reason_to_refuse(tmp_path: Path) -> None:
    write_model(tmp_path, "model", tiny_models.classifier(matrix=np.eye(3) * 0.9))
    async with serving(tmp_path) as server:
        assert reason(server) == ""


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
async def test_a_network_that_answers_no_finite_number_is_refused(tmp_path: Path, bias: float) -> None:
    write_model(tmp_path, "model", tiny_models.classifier(bias=bias))
    async with serving(tmp_path) as server:
        assert "warm-up" in reason(server)
        assert "not a finite number" in reason(server)


async def test_a_network_that_answers_another_width_than_it_has_labels_is_refused(tmp_path: Path) -> None:
    graph = tiny_models.classifier(classes=5)
    del graph.graph.output[0].type.tensor_type.shape.dim[:]
    graph.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "N"
    graph.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "C"
    write_model(tmp_path, "model", graph)
    async with serving(tmp_path) as server:
        assert "5" in reason(server)
        assert "3" in reason(server)
        assert server.repository.ready_models == []


async def test_a_network_that_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    """It gives one row however many images come in: every batch of two or more would fail."""
    write_model(tmp_path, "model", tiny_models.batch_mixer())
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == []
        assert "batch" in reason(server) or "rows" in reason(server)


async def test_a_network_that_cannot_run_is_refused_with_a_reason_for_people(tmp_path: Path) -> None:
    graph = tiny_models.classifier(size=("h", "w"))
    graph.graph.node[3].CopyFrom(onnx.helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[8, 8]))
    write_model(tmp_path, "model", graph, manifest=UNIT + "size = [20, 20]")  # 13 x 13 is left of it: no match
    async with serving(tmp_path) as server:
        assert server.repository.ready_models == []
        assert "warm-up" in reason(server)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
async def test_a_model_is_warmed_with_one_two_and_the_largest_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    sizes: list[int] = []
    real = OrtEngine.run

    def run(self: OrtEngine, feeds: Any) -> Any:
        sizes.append(len(feeds["image"]))
        return real(self, feeds)

    monkeypatch.setattr(OrtEngine, "run", run)
    write_model(tmp_path, "model", manifest=manifest(batching={"max_batch_size": size}))
    async with serving(tmp_path):
        warmed = sorted({1, min(2, size), size})
        assert sizes[-len(warmed) :] == warmed
        assert set(sizes[: -len(warmed)]) == {size}  # timed


async def test_a_version_of_a_network_that_was_timed_is_only_warmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[int, list[int]] = {}
    real = OrtEngine.run

    def run(self: OrtEngine, feeds: Any) -> Any:
        runs.setdefault(id(self), []).append(len(feeds["image"]))
        return real(self, feeds)

    monkeypatch.setattr(OrtEngine, "run", run)
    folder = write_model(
        tmp_path, "model", tiny_models.classifier(bias=0.25), manifest='version_policy = "all"\n' + UNIT
    )
    tiny_models.save(tiny_models.classifier(bias=0.5), folder / "2" / "model.onnx")
    tiny_models.save(tiny_models.classifier(size=(16, 16)), folder / "3" / "model.onnx")
    async with serving(tmp_path):
        warmed, *timed = sorted(runs.values(), key=len)
    assert [warmed] == [sorted({1, 2, warmed[-1]})]  # one version of the two that share a network, and nothing else
    assert [len(sizes) > len(warmed) for sizes in timed] == [True, True]


async def test_a_version_without_its_file_says_which(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model")
    (folder / "1" / "model.onnx").unlink()
    async with serving(tmp_path) as server:
        assert reason(server) == "version 1: 1/model.onnx is missing"


@pytest.mark.parametrize("labels", [None, ("red", "green"), ("red", "green", "blue", "infrared")])
async def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: tuple[str, ...] | None) -> None:
    write_model(tmp_path, "model", labels=labels)
    async with serving(tmp_path) as server:
        assert "labels.txt" in reason(server)


# What is shown


async def test_a_loaded_version_describes_itself(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model", version=3, manifest=manifest(execution={"providers": '["cpu"]'}))
    async with serving(tmp_path, execution={"threads": 2}) as server:
        shown = description(server)
        assert (shown.task, shown.labels) == ("multiclass", ("red", "green", "blue"))
        assert shown.instances == 1  # so small a model runs on the event loop
        assert shown.sha256 == hashlib.sha256((folder / "3" / "model.onnx").read_bytes()).hexdigest()
        assert shown.engine.provider.name == "cpu"
        assert shown.engine.provider.fallback_reason is None
        assert shown.spec.batching.max_batch_size in (2, 4, 8)
        assert shown.spec.input is not None
        assert shown.spec.input.size == (8, 8)


async def test_a_version_that_runs_elsewhere_than_it_would_like_says_why(tmp_path: Path) -> None:
    write_model(tmp_path, "model", manifest=manifest(execution={"providers": '["tensorrt", "cpu"]'}))
    async with serving(tmp_path) as server:
        provider = description(server).engine.provider
        assert provider.name == "cpu"
        assert provider.fallback_reason is not None
        assert provider.fallback_reason.startswith("tensorrt: ")


async def test_the_manifest_says_how_many_instances_run_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "model", manifest=manifest(execution={"instances": 1}))
    async with serving(tmp_path, execution={"threads": 2}) as server:
        assert description(server).instances == 1


@pytest.mark.parametrize(("asked", "threads"), [(0, 1), (2, 2)])
async def test_a_session_has_one_thread_inside_unless_the_manifest_says_more(
    tmp_path: Path, asked: int, threads: int
) -> None:
    write_model(tmp_path, "model", manifest=manifest(execution={"intra_op_threads": asked}))
    async with serving(tmp_path) as server:
        engine = description(server).engine
        assert isinstance(engine, OrtEngine)
        assert engine._session.get_session_options().intra_op_num_threads == threads


def write_slow(root: Path, **execution: int) -> None:
    """A network of some milliseconds on one thread: too long for the event loop."""
    text = manifest(batching={"max_batch_size": 2}, execution=execution).replace("[input]", "[input]\nsize = [8, 8]", 1)
    write_model(root, "model", bodies.slow_model(products=4), manifest=text)


async def test_an_image_alone_is_answered_by_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int]] = []
    real = OrtEngine.run

    def run(self: OrtEngine, feeds: Any) -> Any:
        runs.append((self._session.get_session_options().intra_op_num_threads, len(feeds["pixels"])))
        return real(self, feeds)

    write_slow(tmp_path)
    monkeypatch.setattr(OrtEngine, "run", run)
    async with serving(tmp_path, execution={"threads": 3}) as server:
        runs.clear()
        for color in ("red", "green"):
            (item,) = (await classify(server.pipeline, "model", picture(color))).items
            assert isinstance(item, Classification)
            assert item.predictions[0].label == color
    assert runs == [(3, 1), (3, 1)]


@pytest.mark.parametrize(
    ("execution", "threads", "most_bytes"),
    [({"instances": 1}, 2, 2**26), ({"intra_op_threads": 1}, 2, 2**26), ({}, 1, 2**26), ({}, 2, 2**20)],
    ids=["a bound on instances", "threads of its own", "one thread", "large weights"],
)
async def test_weights_are_held_once_where_the_second_time_would_not_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: dict[str, int], threads: int, most_bytes: int
) -> None:
    monkeypatch.setattr(loading, "_MOST_WIDE_BYTES", most_bytes)
    write_slow(tmp_path, **execution)
    async with serving(tmp_path, execution={"threads": threads}) as server:
        assert isinstance(description(server).engine, OrtEngine)


async def test_of_a_version_that_went_nothing_stays_in_memory(tmp_path: Path) -> None:
    """Nobody waits for Python's collector: it hardly ever comes."""
    write_model(tmp_path, "model")
    gc.disable()
    try:
        async with serving(tmp_path) as server:
            await classify(server.pipeline, "model", picture("green"))
            (loaded,) = server.repository.loaded()
            is_alive = weakref.ref(loaded)
            del loaded
            await server.repository.unload("model")
            for _ in range(500):
                if is_alive() is None:
                    break
                await asyncio.sleep(0.01)
            assert is_alive() is None
    finally:
        gc.enable()


async def test_each_version_has_its_own_labels_and_keys(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "model", manifest='version_policy = "all"\n' + UNIT)
    write_model(tmp_path, "model", version=2, manifest=None, labels=None)
    (folder / "2" / "labels.txt").write_text("rot\ngr\u00fcn\nblau\n", encoding="utf-8")
    (folder / "2" / "model.toml").write_text("[output]\ntemperature = 4.0\n")
    async with serving(tmp_path) as server:
        (old,) = scores(await classify(server.pipeline, "model", picture("green"), version=1))
        (new,) = scores(await classify(server.pipeline, "model", picture("green")))
        assert max(old, key=lambda label: old[label]) == "green"
        assert max(new, key=lambda label: new[label]) == "gr\u00fcn"
        assert new["gr\u00fcn"] < old["green"]


@pytest.mark.parametrize(("seconds", "instances"), [(0.0012, 1), (0.0019, 1), (0.0021, 3)])
async def test_a_network_that_costs_less_than_python_runs_on_the_event_loop_on_a_slow_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, instances: int
) -> None:
    monkeypatch.setattr("service.loading.time_batches", lambda parts, sizes: {32: seconds})
    write_model(tmp_path, "model", manifest=manifest(batching={"max_batch_size": 32}))
    async with serving(tmp_path, execution={"threads": 3}) as server:
        assert description(server).instances == instances


async def test_a_device_sees_a_few_sizes_only_and_runs_what_idle_threads_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the device: the CPU runs what a device would."""
    sizes: list[int] = []

    class OnDevice(OrtEngine):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.provider = ProviderInfo("cuda")

        def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
            sizes.append(len(next(iter(feeds.values()))))
            return super().run(feeds)

    monkeypatch.setattr("service.loading.OrtEngine", OnDevice)
    write_model(tmp_path, "model", manifest=manifest(batching={"max_batch_size": 6}))
    colors = ["red", "green", "blue", "green", "red", "blue", "blue"]
    async with serving(tmp_path, execution={"threads": 3}) as server:
        assert {1, 2, 4, 6} <= set(sizes), "each size is warmed up"
        assert description(server).instances == 2
        asked = [picture(color) for color in colors]
        assert best_labels(await classify(server.pipeline, "model", *asked)) == colors
        damaged = await classify(server.pipeline, "model", asked[0], damaged_picture(), asked[2])
        assert [type(item) for item in damaged.items] == [Classification, InvalidImage, Classification]
    assert set(sizes) <= {1, 2, 4, 6}
