"""A model is judged by its config.json and its tensors' shapes, in a process with bounds.

The first inspection of a test process takes about 4 seconds, each further one 0.1.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.domain.spec.job import JobSpec
from service.domain.spec.sources import LocalPath
from service.errors import InvalidParameter, ModelInvalid, UserError
from service.inputs.checks import inspect_headers
from service.inputs.models import inspection
from service.inputs.models.files import ModelHeaders
from service.inputs.models.inspection import inspect_model, inspect_tokenizer
from service.inputs.models.sources import check_model
from service.settings import Settings
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config

LLAMA: dict[str, Any] = tiny_llama_config().to_dict() | {"architectures": ["LlamaForCausalLM"]}


def shapes_of(config: Any) -> dict[str, list[int]]:
    """The shapes that a checkpoint of the configuration has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = model.all_tied_weights_keys
    return {name: [*each.shape] for name, each in model.state_dict().items() if name not in tied}


SHAPES = shapes_of(tiny_llama_config())
LACKING = {name: shape for name, shape in SHAPES.items() if "q_proj" not in name}


@pytest.fixture
def spec(job_spec: JobSpec) -> JobSpec:
    """A job with sequences that the tiny models can read."""
    return job_spec.model_copy(
        update={
            "calibration": job_spec.calibration.model_copy(update={"sequence_length": 64}),
            "evaluation": job_spec.evaluation.model_copy(update={"decode_tokens": 4}),
        }
    )


def refusal(spec: JobSpec, shapes: Mapping[str, list[int]] = SHAPES, **changes: Any) -> str:
    with pytest.raises(ModelInvalid) as caught:
        inspect_model(json.dumps(LLAMA | changes).encode(), shapes, spec)
    assert caught.value.param == "model"
    return caught.value.detail


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3"])
def test_a_sound_model_passes(spec: JobSpec, name: str) -> None:
    config = ARCHITECTURES[name]
    inspect_model(json.dumps(config.to_dict()).encode(), shapes_of(config), spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_hidden_layers": "2"},
            "Field 'num_hidden_layers' expected int, got str (value: '2')",
        ),
        ({"num_attention_heads": 3}, "hidden size (32) is not a multiple of the number of"),
        ({"layer_types": ["full_attention"] * 3}, "must be equal to the number of `layer_types`"),
        ({"hidden_act": "relu7"}, "config.json sets hidden_act to 'relu7', which transformers"),
        (
            {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
            "config.json sets rope_parameters.rope_type to 'spiral', which transformers",
        ),
        ({"dtype": "int5"}, "`dtype=torch.int5`"),
        ({"model_type": "sheep"}, "model type `sheep`"),
        (
            {"intermediate_size": 81},
            "'model.layers.0.mlp.gate_proj.weight' has the shape [80, 32], but with config.json "
            "LlamaForCausalLM has [81, 32]",
        ),
        ({"num_hidden_layers": 3}, "the checkpoint has no model.layers.2."),
        ({"num_hidden_layers": 1}, "but num_hidden_layers in config.json is 1"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused_in_plain_words(
    spec: JobSpec, changes: dict[str, Any], words: str
) -> None:
    message = refusal(spec, **changes)
    assert words in message
    assert "Error" not in message


def test_a_tensor_without_a_place_is_refused(spec: JobSpec) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    assert f"the checkpoint holds '{name}'" in refusal(spec, SHAPES | {name: [32]})


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        ("all.model.", "it has 'all.model.embed_tokens.weight': remove 'all.' from the names"),
        ("model.text.", "it has 'model.text.embed_tokens.weight': rename its tensors if these are"),
    ],
)
def test_tensors_under_other_names_are_named(spec: JobSpec, beginning: str, words: str) -> None:
    shapes = {name.replace("model.", beginning, 1): each for name, each in SHAPES.items()}
    assert words in refusal(spec, shapes)


def test_a_missing_tensor_is_refused_with_the_way_out(spec: JobSpec) -> None:
    untied = refusal(spec, tie_word_embeddings=False)
    assert "has no lm_head.weight: add it, or set tie_word_embeddings in config.json" in untied
    fewer = {name: each for name, each in SHAPES.items() if name != "model.norm.weight"}
    assert "has no model.norm.weight: complete it, or use the config.json" in refusal(spec, fewer)


def test_sequences_longer_than_the_model_reads_are_refused(spec: JobSpec) -> None:
    config = json.dumps(LLAMA | {"max_position_embeddings": 63}).encode()
    with pytest.raises(InvalidParameter) as caught:
        inspect_model(config, SHAPES, spec)
    assert caught.value.param == "calibration.sequence_length"


def test_a_layer_of_another_kind_is_refused(spec: JobSpec) -> None:
    config = ARCHITECTURES["gpt2"].to_dict() | {"add_cross_attention": True}
    with pytest.raises(UserError):
        inspect_model(json.dumps(config).encode(), SHAPES, spec)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    names = ("tokenizer.json", "tokenizer_config.json")
    return {name: (folder / name).read_bytes() for name in names}


def with_token(
    files: dict[str, bytes], token: str, number: int, *, added: bool
) -> dict[str, bytes]:
    """The tokenizer with one more token."""
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer["model"]["vocab"][token] = number
    if added:
        tokenizer["added_tokens"].append(
            tokenizer["added_tokens"][0] | {"content": token, "id": number}
        )
    return files | {"tokenizer.json": json.dumps(tokenizer).encode()}


def tokenizer_refusal(files: dict[str, bytes]) -> str:
    with pytest.raises(ModelInvalid) as caught:
        inspect_tokenizer(json.dumps(LLAMA).encode(), files)
    assert caught.value.param == "model"
    return caught.value.detail


def test_a_tokenizer_is_inspected(tiny_llama: Path) -> None:
    files = tokenizer_files(tiny_llama)
    inspect_tokenizer(json.dumps(LLAMA).encode(), files)
    assert "there is no tokenizer.json" in tokenizer_refusal({})
    damaged = files | {"tokenizer.json": files["tokenizer.json"][:-100]}
    assert "tokenizer.json is not a JSON object" in tokenizer_refusal(damaged)


def test_a_submission_inspects_the_tokenizer(
    spec: JobSpec, tiny_llama: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    named = spec.model_copy(update={"model": LocalPath(source="local", path=str(model))})
    settings = Settings(allowed_roots=(tmp_path,))
    inspect_headers(headers_of(named, settings), named)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelInvalid, match=r"there is no tokenizer\.json"):
        inspect_headers(headers_of(named, settings), named)


def headers_of(spec: JobSpec, settings: Settings) -> ModelHeaders:
    headers = check_model(spec.model, settings)
    assert isinstance(headers, ModelHeaders)
    return headers


def test_a_vocabulary_beyond_the_embeddings_is_refused(tiny_llama: Path) -> None:
    files = with_token(tokenizer_files(tiny_llama), "sheep", 258, added=False)
    assert "the id 258 for 'sheep', but vocab_size in config.json is 258" in tokenizer_refusal(
        files
    )


def test_added_tokens_may_have_no_embedding(tiny_llama: Path) -> None:
    """As that for images in Gemma 3, which stands in no text."""
    files = with_token(tokenizer_files(tiny_llama), "<image>", 258, added=True)
    inspect_tokenizer(json.dumps(LLAMA).encode(), files)


def test_a_tokenizer_beyond_the_bounds_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = json.loads(tokenizer_files(tiny_llama)["tokenizer.json"])
    tokenizer["model"]["vocab"] = {f"token {number}": number for number in range(400_000)}
    files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    tokenizer_refusal({})  # so that the process to fork from is there
    monkeypatch.setattr(inspection, "GIVE_UP_SECONDS", 60)
    monkeypatch.setattr(inspection, "MAX_SECONDS", 60)
    monkeypatch.setattr(inspection, "MAX_MEMORY_BYTES", 2**27)
    assert "the tokenizer is one that takes too much memory" in tokenizer_refusal(files)


@pytest.mark.parametrize(
    ("seconds", "memory_bytes", "words"),
    [(1, 2**31, "too much time"), (60, 2**27, "too much memory")],
)
def test_a_model_beyond_the_bounds_is_refused(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, seconds: int, memory_bytes: int, words: str
) -> None:
    refusal(spec, num_hidden_layers=1)  # so that the process to fork from is there
    monkeypatch.setattr(inspection, "GIVE_UP_SECONDS", 60)
    monkeypatch.setattr(inspection, "MAX_SECONDS", seconds)
    monkeypatch.setattr(inspection, "MAX_MEMORY_BYTES", memory_bytes)
    assert words in refusal(spec, num_hidden_layers=10**7)


def test_more_names_than_the_bound_are_left_to_the_workers(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MAX_TENSORS", len(SHAPES))
    inspect_model(json.dumps(LLAMA).encode(), SHAPES | {"another": [3]}, spec)


def test_without_transformers_the_workers_look_first(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "available", lambda: False)
    inspect_model(b"{}", {}, spec)


def test_a_broken_process_refuses_nothing_and_is_started_again(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inspector = inspection._Inspector()
    monkeypatch.setattr(inspection, "_INSPECTOR", inspector)
    monkeypatch.setattr(inspection, "PROGRAM", "workers.no_such_program")
    inspect_model(b"{}", {}, spec)
    assert "could not be inspected" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(inspection, "_INSPECTOR", inspector)
    refusal(spec, num_attention_heads=3)
    inspector.close()


def test_the_process_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_S3_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in inspection._environment().values()


class TestKnownAnswers:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The functions that the process is asked to call."""
        asked: list[str] = []
        ask = inspection._INSPECTOR.ask

        def noted(request: tuple[Any, ...]) -> Any:
            asked.append(request[0])
            return ask(request)

        monkeypatch.setattr(inspection, "_KNOWN", {})
        monkeypatch.setattr(inspection._INSPECTOR, "ask", noted)
        return asked

    def test_of_the_same_model_are_kept(self, spec: JobSpec, asked: list[str]) -> None:
        config = json.dumps(LLAMA).encode()
        for priority in range(3):
            inspect_model(config, SHAPES, spec.model_copy(update={"priority": priority}))
        assert asked == ["inspect"]
        longer = spec.calibration.model_copy(update={"sequence_length": 65})
        inspect_model(config, SHAPES, spec.model_copy(update={"calibration": longer}))
        inspect_model(json.dumps(LLAMA | {"note": 1}).encode(), SHAPES, spec)
        assert refusal(spec, LACKING)
        assert len(asked) == 4

    def test_are_errors_of_their_own(self, spec: JobSpec, asked: list[str]) -> None:
        def refused() -> ModelInvalid:
            with pytest.raises(ModelInvalid) as caught:
                inspect_model(json.dumps(LLAMA).encode(), LACKING, spec)
            return caught.value

        first, second = refused(), refused()
        assert asked == ["inspect"]
        assert (first.detail, first.param) == (second.detail, second.param)
        assert first is not second

    def test_beyond_the_bounds_are_not_kept(
        self, spec: JobSpec, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exceeded(request: tuple[Any, ...]) -> str:
            asked.append(request[0])
            return "time"

        monkeypatch.setattr(inspection._INSPECTOR, "ask", exceeded)
        for _ in range(2):
            assert "too much time" in refusal(spec)
        assert len(asked) == 2

    def test_are_bounded(
        self, spec: JobSpec, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inspection, "MAX_KNOWN", 2)
        monkeypatch.setattr(inspection._INSPECTOR, "ask", lambda request: asked.append(request[0]))
        for number in range(5):
            inspect_model(json.dumps(LLAMA | {"note": number}).encode(), SHAPES, spec)
            assert len(inspection._KNOWN) <= 2
