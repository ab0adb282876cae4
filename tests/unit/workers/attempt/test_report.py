"""Three measures of size for every target, valid JSON, and a model card that agrees with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from service.domain.job import Job, new_job_id
from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import ByteTarget, QualityTarget, SizeTarget
from service.domain.states import JobState
from service.inputs.models.source_card import SourceCard
from workers.actors.replies import ModelSummary
from workers.artifact.size import CheckpointSize
from workers.attempt.probes import Probe
from workers.attempt.report import Evaluation, TargetResult, job_report, model_card
from workers.compression.candidates import Forms, LayerCandidates, RoundedCandidate, Width
from workers.compression.shapes import InputGroup, LinearLayer
from workers.evaluation.estimates import Estimate
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.scores import Scores
from workers.proof.result import Proof
from workers.text.texts import EvaluationText, Texts, Usage

LAYERS = (LinearLayer("block.up", 8, 4, False), LinearLayer("block.down", 4, 8, True))
LINEAR = 32 + 36
MODEL = ModelSummary(
    architecture="LlamaForCausalLM",
    parameters=200,
    bytes=5000,
    source_format="gguf",
    source_bytes=1234,
    dtype="float32",
    groups=(InputGroup(LAYERS[:1]), InputGroup(LAYERS[1:])),
    blocks=(("block.up", "block.down"),),
    uniform=True,
    unfused=False,
    vocabulary=(),
    left_dense={"head": "outside the transformer blocks"},
    carried={"mtp.fc.weight": "copied", "mtp.norm.weight": "copied"},
    left_out={"v_head.weight": "foreign"},
    card=SourceCard(license="mit"),
    shapes=None,
)
OPTIONS = [
    LayerCandidates(
        "block.up",
        torch.tensor([6.0, 3.0, 1.0, 0.0]).double(),
        2,
        32,
        12,
        0,
        dense_bytes=64,
        rounded=(RoundedCandidate(Width(4), 30, 0.5),),
    ),
    LayerCandidates(
        "block.down", torch.tensor([5.0, 3.0, 1.0, 1.0]).double(), 2, 36, 12, 4, dense_bytes=72
    ),
]
TEXTS = Texts(
    40,
    [[1] * 64] * 8,
    [EvaluationText(HELD_OUT, 5, [[1] * 64] * 3), EvaluationText("wiki", 7, [[1] * 64])],
    ["picture.png"],
    [Usage("calibration", 40, 8, 8, 8, 512, {"rows without text": 2})],
)


def text_loss(*each: tuple[float, int, int]) -> TextLoss:
    return TextLoss(tuple(SequenceLoss(*sequence) for sequence in each))


DENSE = Evaluation(
    {
        HELD_OUT: text_loss((60.0, 30, 10), (90.0, 40, 15), (50.0, 30, 15)),
        "wiki": text_loss((60.0, 63, 20)),
    },
    {"quiz": Scores(4, {"acc": (1.0, 0.0, 1.0, 1.0)}, {"quiz/f1": Estimate(0.5, 0.1)})},
    21.5,
)
CUT = Evaluation(
    {
        HELD_OUT: text_loss((75.0, 30, 9), (115.0, 40, 12), (60.0, 30, 14)),
        "wiki": text_loss((70.0, 63, 18)),
    },
    {"quiz": Scores(4, {"acc": (1.0, 0.0, 0.0, 1.0)}, {"quiz/f1": Estimate(0.4, None)})},
    25.0,
)
LOST = Evaluation(
    {
        name: text_loss(*[(1e6, s.tokens, 0) for s in loss.each])
        for name, loss in CUT.losses.items()
    },
    {"quiz": Scores(4, {"acc": (0.0, 0.0, 0.0, 0.0)}, {"quiz/f1": Estimate(math.nan, None)})},
    None,
)
RESULT = TargetResult(
    SizeTarget(keep=0.8),
    {"block.up": 1, "block.down": None},
    CheckpointSize(180, 4000),
    Proof(1.25e-7, 1.0, 64),
    CUT,
)


@pytest.fixture
def job(job_spec: JobSpec) -> Job:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    calibration = job_spec.calibration.model_copy(update={"sequence_length": 64})
    spec = job_spec.model_copy(update={"calibration": calibration, "dtype": "bfloat16"})
    return Job(
        new_job_id(), "small", JobState.RUNNING, spec.model_dump_json(), 1, now, now, None, None, ()
    )


def report_of(
    job: Job, dense: Evaluation | None, *results: TargetResult, probes: Sequence[Probe] = ()
) -> dict[str, Any]:
    seconds = {"resolve": 1.5}
    return job_report(job, MODEL, OPTIONS, TEXTS, 2.5, [0.25, 0.0], dense, results, probes, seconds)


def test_what_stays_dense_is_said_with_its_reason(job: Job) -> None:
    unreached = replace(OPTIONS[0], max_rank=0)
    options = [unreached, OPTIONS[1]]
    report = job_report(job, MODEL, options, TEXTS, 2.5, [], None, [], [], {})
    assert report["left_dense"] == [
        {"name": "head", "reason": "outside the transformer blocks"},
        {"name": "block.up", "reason": "no calibration token reached it"},
    ]


def test_tensors_that_the_model_does_not_use_are_named(job: Job) -> None:
    report = report_of(job, DENSE, RESULT)
    assert report["unused_tensors"] == [
        {"name": "mtp.fc.weight", "in_artifacts": True, "reason": "copied"},
        {"name": "mtp.norm.weight", "in_artifacts": True, "reason": "copied"},
        {"name": "v_head.weight", "in_artifacts": False, "reason": "foreign"},
    ]
    card = model_card(report, "keep-0.8")
    assert "- 2 are in this artifact, such as `mtp.fc.weight`: copied.\n" in card
    assert "- 1 are not in this artifact, such as `v_head.weight`: foreign.\n" in card
    assert "does not use" not in model_card(report | {"unused_tensors": []}, "keep-0.8")


def test_size_is_said_three_ways(job: Job) -> None:
    (target,) = report_of(job, DENSE, RESULT)["targets"]
    kept = 11 + 36
    assert target["size"] == {
        "linear_fraction": kept / LINEAR,
        "model_fraction": 180 / 200,
        "bytes": 4000,
        "linear_parameters": kept,
        "linear_bytes": 2 * kept,
        "linear_bytes_fraction": kept / LINEAR,
        "parameters": 180,
    }
    assert (target["name"], target["keep"], target["scope"]) == ("keep-0.8", 0.8, "linear")


def test_what_was_dropped_is_said_per_layer_and_in_all(job: Job) -> None:
    (target,) = report_of(job, DENSE, RESULT)["targets"]
    assert target["dropped_energy_fraction"] == pytest.approx((3 + 1) / 20)
    up, down = target["layers"]
    assert up == {
        "name": "block.up",
        "out_features": 8,
        "in_features": 4,
        "rank": 1,
        "bits": None,
        "parameters": 11,
        "bytes": 22,
        "dropped_energy_fraction": pytest.approx(0.4),
    }
    assert (down["rank"], down["parameters"], down["dropped_energy_fraction"]) == (None, 36, 0)


def test_integers_have_bits_and_a_price(job: Job) -> None:
    forms = {"block.up": Width(4), "block.down": None}
    target = replace(RESULT, target=ByteTarget(bytes_fraction=0.8), forms=forms)
    report = report_of(job, DENSE, target)
    (found,) = report["targets"]
    assert found["name"] == "bytes-0.8"
    assert (found["layers"][0]["rank"], found["layers"][0]["bits"]) == (None, 4)
    assert found["size"]["linear_bytes"] == 30 + 72
    assert found["size"]["linear_fraction"] == 1
    assert found["predicted_loss_increase"] == 0.25
    card = model_card(report, "bytes-0.8")
    assert f"compressed to {102 / (2 * LINEAR):.1%} of the bytes of its linear layers" in card
    assert "trust_remote_code" not in card


SERVES = "vllm serve path/to/this/folder"
ON_CPUS = "python -m vllm.entrypoints.openai.api_server --model path/to/this/folder"


@pytest.mark.parametrize(
    ("target", "forms", "said", "unsaid"),
    [
        (
            SizeTarget(keep=0.8),
            {"block.up": 1, "block.down": None},
            ["trust_remote_code=True", f"{SERVES} --trust-remote-code\n", ON_CPUS],
            ["compressed-tensors loguru"],
        ),
        (
            ByteTarget(bytes_fraction=0.8),
            {"block.up": Width(4), "block.down": None},
            ["`pip install compressed-tensors loguru psutil`", f"{SERVES}\n", "on NVIDIA GPUs:"],
            ["trust", ON_CPUS],
        ),
        (
            ByteTarget(bytes_fraction=0.8, precisions="vllm-cpu"),
            {"block.up": Width(4), "block.down": None},
            [f"{SERVES}\n", ON_CPUS, "on NVIDIA GPUs or CPUs:"],
            ["trust"],
        ),
        (
            ByteTarget(bytes_fraction=0.8, precisions="transformers"),
            {"block.up": Width(3), "block.down": Width(8)},
            ["not for vLLM: its layers have 3, 8 bits, and", "compressed-tensors loguru"],
            ["trust", SERVES, ON_CPUS, "have 8 bits. transformers"],
        ),
        (
            ByteTarget(bytes_fraction=0.8, precisions="transformers", embedding_bits=8),
            {"block.up": Width(3), "block.down": None, "head": Width(8)},
            ["its layers have 3 bits, an embedding of 8, and", "output layer have 8 bits. trans"],
            ["trust", SERVES, ON_CPUS],
        ),
    ],
    ids=["low rank", "vllm", "vllm-cpu", "transformers", "embeddings"],
)
def test_the_card_says_which_engines_load_it_and_how(
    job: Job,
    target: SizeTarget | ByteTarget,
    forms: Forms,
    said: Sequence[str],
    unsaid: Sequence[str],
) -> None:
    rounded = tuple(RoundedCandidate(Width(bits), 30, 0.5) for bits in (3, 4, 8))
    options = [replace(layer, rounded=rounded) for layer in OPTIONS]
    result = replace(RESULT, target=target, forms=forms)
    report = job_report(job, MODEL, options, TEXTS, 2.5, [], DENSE, [result], [], {})
    card = model_card(report, target.name)
    assert [words for words in said if words not in card] == []
    assert [words for words in unsaid if words in card] == []


def test_the_card_of_low_rank_experts_sends_users_of_vllm_to_expand(job: Job) -> None:
    mixture = replace(MODEL, unfused=True)
    report = job_report(job, mixture, OPTIONS, TEXTS, 2.5, [], DENSE, [RESULT], [], {})
    card = model_card(report, "keep-0.8")
    assert SERVES not in card
    assert "`eigenpress expand`" in card


def test_a_layer_without_any_energy_has_lost_none(job: Job) -> None:
    dead = [replace(layer, spectrum=torch.zeros(4).double()) for layer in OPTIONS]
    report = job_report(job, MODEL, dead, TEXTS, 0.0, [], None, [RESULT], [], {})
    assert report["targets"][0]["dropped_energy_fraction"] == 0
    assert report["targets"][0]["layers"][0]["dropped_energy_fraction"] == 0


def test_perplexity_comes_with_how_much_it_was_measured_on(job: Job) -> None:
    report = report_of(job, DENSE, RESULT)
    dense, cut = report["evaluation"]["dense"], report["targets"][0]
    assert dense["perplexity"][HELD_OUT] == {
        "perplexity": pytest.approx(math.exp(2.0)),
        "standard_error": DENSE.losses[HELD_OUT].estimated_perplexity().standard_error,
        "tokens": 100,
        "sequences": 3,
        "documents": 5,
    }
    assert cut["perplexity"]["wiki"]["perplexity"] == pytest.approx(math.exp(70 / 63))
    assert cut["perplexity"]["wiki"]["documents"] == 7
    assert (dense["decode_tokens_per_second"], cut["decode_tokens_per_second"]) == (21.5, 25.0)


def test_a_compressed_model_is_compared_with_the_dense_one_in_pairs(job: Job) -> None:
    report = report_of(job, DENSE, RESULT)
    (cut,) = report["targets"]
    perplexity, accuracy = cut["perplexity"][HELD_OUT], cut["accuracy"][HELD_OUT]
    before, after = DENSE.losses[HELD_OUT], CUT.losses[HELD_OUT]
    assert perplexity["ratio"] == pytest.approx(math.exp(0.5))
    assert perplexity["ratio_standard_error"] == after.perplexity_ratio(before).standard_error
    assert accuracy == {
        "accuracy": 0.35,
        "standard_error": after.estimated_accuracy().standard_error,
        "difference": -0.05,
        "difference_standard_error": after.accuracy_difference(before).standard_error,
    }
    assert cut["perplexity"]["wiki"]["ratio_standard_error"] is None  # of one sequence
    assert set(report["evaluation"]["dense"]["accuracy"]["wiki"]) == {"accuracy", "standard_error"}


def test_the_curve_has_every_size_that_was_measured(job: Job) -> None:
    probes = [
        Probe({"block.up": 1, "block.down": None}, {HELD_OUT: text_loss((250.0, 100, 9))}),
        Probe({"block.up": 1, "block.down": 1}, {HELD_OUT: text_loss((1e6, 100, 0))}),
        Probe({"block.up": None, "block.down": 2}, {HELD_OUT: text_loss((240.0, 100, 9))}),
    ]
    curve = report_of(job, DENSE, RESULT, probes=probes)["curve"]
    assert [(point["kind"], point["name"]) for point in curve] == [
        ("probe", None),
        ("target", "keep-0.8"),
        ("probe", None),
        ("dense", None),
    ]
    smallest, target, _, dense = curve
    assert smallest == {
        "kind": "probe",
        "name": None,
        "linear_fraction": pytest.approx((11 + 15) / LINEAR),
        "model_fraction": pytest.approx((200 - LINEAR + 26) / 200),
        "dropped_energy_fraction": pytest.approx((4 + 5) / 20),
        "perplexity": {HELD_OUT: None},
    }
    assert target["perplexity"]["wiki"] == pytest.approx(math.exp(70 / 63))
    assert (dense["linear_fraction"], dense["model_fraction"]) == (1, 1)
    assert dense["dropped_energy_fraction"] == 0


def test_spectra_are_what_the_first_directions_keep(job: Job) -> None:
    up, down = report_of(job, DENSE, RESULT)["spectra"]
    assert (up["name"], up["energy"]) == ("block.up", 10)
    assert (up["ranks"], up["kept"]) == ([1, 2, 3, 4], [0.6, 0.9, 1, 1])
    assert down["kept"] == [0.5, 0.8, 0.9, 1]
    assert (up["outputs"], up["importance"]) == ([], [])  # a method that weighs none


def test_importance_is_what_the_most_important_outputs_have(job: Job) -> None:
    weighed = replace(OPTIONS[0], importance=torch.tensor([5.0, 3.0, 1.0, 1.0]).double())
    options = [weighed, OPTIONS[1]]
    up, _ = job_report(job, MODEL, options, TEXTS, 2.5, [], None, [], [], {})["spectra"]
    assert (up["outputs"], up["importance"]) == ([1, 2, 3, 4], [0.5, 0.8, 0.9, 1])


@pytest.mark.parametrize(("layers", "points"), [(1, 64), (4096, 8)])
def test_spectra_are_bounded(job: Job, layers: int, points: int) -> None:
    flat = torch.ones(1000).double()
    wide = [LayerCandidates(f"layer.{number}", flat, 2, 32, 12, 0) for number in range(layers)]
    model = replace(MODEL, groups=())
    spectra = job_report(job, model, wide, TEXTS, 2.5, [0.25, 0.0], None, [], [], {})["spectra"]
    assert len(spectra) == layers
    assert len(spectra[0]["ranks"]) == len(spectra[0]["kept"]) <= points
    assert (spectra[0]["ranks"][0], spectra[0]["ranks"][-1]) == (1, 1000)


def test_a_layer_without_a_spectrum_has_no_points(job: Job) -> None:
    unseen = [replace(OPTIONS[0], spectrum=torch.zeros(0).double(), max_rank=0), OPTIONS[1]]
    report = job_report(job, MODEL, unseen, TEXTS, 2.5, [0.25, 0.0], None, [], [], {})
    up = report["spectra"][0]
    assert (up["energy"], up["ranks"], up["kept"]) == (0, [], [])


def test_a_quality_target_says_what_was_asked(job: Job) -> None:
    target = QualityTarget(max_perplexity_increase=0.1, dataset="wiki")
    report = report_of(job, DENSE, replace(RESULT, target=target))
    (shown,) = report["targets"]
    assert (shown["name"], shown["max_perplexity_increase"]) == ("increase-0.1-wiki", 0.1)
    assert shown["dataset"] == "wiki"
    assert "keep" not in shown
    assert "# LlamaForCausalLM" in model_card(report, "increase-0.1-wiki")


def test_tasks_stand_side_by_side_and_are_compared_in_pairs(job: Job) -> None:
    report = report_of(job, DENSE, RESULT)
    dense, cut = report["evaluation"]["dense"]["tasks"], report["targets"][0]["tasks"]
    assert dense["quiz"] == {
        "problems": 4,
        "metrics": {
            "acc": {"value": 0.75, "standard_error": pytest.approx(0.25)},
            "quiz/f1": {"value": 0.5, "standard_error": 0.1},
        },
    }
    assert cut["quiz"]["metrics"] == {
        "acc": {
            "value": 0.5,
            "standard_error": pytest.approx(math.sqrt(0.25 / 3)),
            "difference": -0.25,
            "difference_standard_error": pytest.approx(0.25),
        },
        "quiz/f1": {"value": 0.4, "standard_error": None},
    }


def test_the_report_says_what_was_done(job: Job) -> None:
    report = report_of(job, DENSE, RESULT)
    assert report["format"] == 1
    assert (report["job"]["id"], report["job"]["name"]) == (job.id, "small")
    again = JobSpec.model_validate(report["job"]["specification"])
    assert again == job.spec
    assert report["model"] == {
        "source": {"source": "local", "path": "/models/small"},
        "card": {"license": "mit"},
        "architecture": "LlamaForCausalLM",
        "parameters": 200,
        "linear_parameters": LINEAR,
        "unfused": False,
        "source_format": "gguf",
        "source_bytes": 1234,
        "dtype": "float32",
        "bytes": 5000,
        "dense_bytes": 2 * 200,
    }
    assert report["dtype"] == "bfloat16"
    assert (report["method"], report["allocation"]) == ("impact-kron", "global")
    assert report["calibration"] == {
        "sequences": 8,
        "sequence_length": 64,
        "tokens": 512,
        "documents": 40,
        "skipped_files": 1,
        "loss": 2.5,
        "idle_shares": [0.25, 0.0],
    }
    assert report["texts"][0]["text"] == "calibration"
    assert report["texts"][0]["skipped"] == {"rows without text": 2}
    assert report["warnings"] == ["1 files are not text and were skipped."]
    assert [layer["name"] for layer in report["left_dense"]] == ["head"]
    assert report["seconds"] == {"resolve": 1.5}


@pytest.mark.parametrize("lost", [False, True], ids=["measured", "lost"])
@pytest.mark.parametrize("enabled", [False, True], ids=["no evaluation", "evaluation"])
def test_it_is_strict_json_and_every_card_can_be_drawn(job: Job, lost: bool, enabled: bool) -> None:
    measured = (LOST if lost else CUT) if enabled else None
    results = [
        replace(RESULT, target=target, evaluation=measured)
        for target in (SizeTarget(keep=0.8), SizeTarget(keep=0.5, scope="model"))
    ]
    report = report_of(job, DENSE if enabled else None, *results)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for name in ("keep-0.8", "keep-0.5-of-model"):
        card = model_card(report, name)
        assert ("perplexity" in card) is enabled
        assert ("overflow" in card) is (lost and enabled)


def test_a_perplexity_beyond_any_number_is_null(job: Job) -> None:
    (target,) = report_of(job, DENSE, replace(RESULT, evaluation=LOST))["targets"]
    assert target["perplexity"]["wiki"]["perplexity"] is None
    assert target["perplexity"]["wiki"]["ratio"] is None
    assert target["perplexity"]["wiki"]["tokens"] == 63
    assert target["perplexity"][HELD_OUT]["standard_error"] is None


@pytest.mark.parametrize("error", [math.nan, math.inf], ids=str)
def test_a_standard_error_beyond_any_number_is_null(job: Job, error: float) -> None:
    unsure = replace(CUT, scores={"quiz": Scores(4, {}, {"quiz/f1": Estimate(0.4, error)})})
    report = report_of(job, DENSE, replace(RESULT, evaluation=unsure))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    metrics = report["targets"][0]["tasks"]["quiz"]["metrics"]
    assert metrics["quiz/f1"] == {"value": 0.4, "standard_error": None}


def test_what_models_write_stands_beside_the_prompts(job: Job) -> None:
    wanted = job.spec.evaluation.model_copy(update={"prompts": ("def f(",)})
    asked = replace(
        job, stored_spec=job.spec.model_copy(update={"evaluation": wanted}).model_dump_json()
    )
    written = replace(RESULT, evaluation=replace(CUT, continuations=("y):",)))
    report = report_of(asked, replace(DENSE, continuations=("x):",)), written)
    assert report["evaluation"]["prompts"] == ["def f("]
    assert report["evaluation"]["dense"]["continuations"] == ["x):"]
    assert report["targets"][0]["continuations"] == ["y):"]


def test_without_evaluation_nothing_is_made_up(job: Job) -> None:
    report = report_of(job, None, replace(RESULT, evaluation=None))
    assert report["evaluation"]["dense"] is None
    assert report["targets"][0]["perplexity"] is None
    assert report["targets"][0]["decode_tokens_per_second"] is None


def test_the_card_says_what_the_report_says(job: Job) -> None:
    card = model_card(report_of(job, DENSE, RESULT), "keep-0.8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# LlamaForCausalLM, compressed to 69.1% of its linear parameters" in card
    assert "90.0% of all parameters" in card
    assert "weights take 4,000 bytes" in card
    assert "The original is a GGUF file of 1,234 bytes" in card
    assert "in bfloat16 would take 400." in card
    assert "| measured | dense, float32 | compressed, bfloat16 |" in card
    assert "| perplexity on held-out | 7.389 ± 1.280 | 12.182 ± 3.165 |" in card
    assert "| perplexity on wiki | 2.592 | 3.038 |" in card
    assert "| accuracy on wiki | 0.317 | 0.286 |" in card
    assert "| acc on quiz | 0.750 ± 0.250 | 0.500 ± 0.289 |" in card
    assert "| quiz/f1 on quiz | 0.500 ± 0.100 | 0.400 |" in card
    assert "trust_remote_code=True" in card
