"""options={"profile": file}: settings by length, one graph a range, and errors that say what is wrong."""

import copy
import json

import pytest
import torch
from support.models import tiny_llama
from support.profiles import model_of, profile_data, write_profile
from torch._dynamo.exc import BackendCompilerFailed

import sa_compile
from sa_compile import SampleAttentionConfig
from sa_compile.fingerprint import WrongModel
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_PEAK
from sa_compile.profile import load_profile

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCKS = {"block_q": 16, "block_k": 16}
SPARSE = {
    **{**BLOCKS, "method": "chunked", "alpha_c": 0.3, "alpha_s": 0.3, "chunk_n": 1},
    **{"window_blocks": 1, "last_rows": 0},
}
RANGES = [
    (32, 79, {**BLOCKS, "method": "chunked", "alpha_c": 1.0, "alpha_s": 1.0}),
    (80, 111, SPARSE),
    (112, None, None),
]


@pytest.fixture(scope="module")
def known():
    return model_of(tiny_llama(), torch.arange(64)[None])


@pytest.fixture
def profile(tmp_path, known):
    return write_profile(tmp_path / "profile.json", known, RANGES)


def prompt(length):
    return torch.randint(0, 96, (1, length), generator=torch.Generator().manual_seed(length))


def logits(model, length):
    with torch.no_grad():
        return model(prompt(length), use_cache=False).logits


def options_of_range(number):
    first, _, options = RANGES[number]
    return {**options, "min_seq_len": first, "inner": "eager"}


@pytest.mark.parametrize(
    "length, number, outcome",
    [
        pytest.param(31, None, "exact", id="below-the-first-range"),
        pytest.param(32, 0, "sampled", id="first-of-a-range"),
        pytest.param(79, 0, "sampled", id="last-of-a-range"),
        pytest.param(80, 1, "sampled", id="first-of-the-next"),
        pytest.param(111, 1, "sampled", id="last-of-the-next"),
        pytest.param(112, 2, "exact", id="a-range-left-exact"),
    ],
)
def test_a_prompt_gets_the_settings_of_its_range(llama, profile, length, number, outcome):
    with torch.no_grad():
        report = sa_compile.explain(llama, prompt(length), use_cache=False, options={"profile": profile})
    names = ["32 to 79", "80 to 111", "112 and more"]
    expected_range = "" if number is None else names[number]
    assert {(s.outcome, s.profile_range) for s in report.sites} == {(outcome, expected_range)}
    compiled = torch.compile(llama, backend="sampleattn", options={"profile": profile, "inner": "eager"})
    actual = logits(compiled, length)
    if outcome == "exact":
        torch.testing.assert_close(actual, logits(llama, length), rtol=1e-4, atol=1e-4)
        return
    torch._dynamo.reset()
    by_hand = torch.compile(llama, backend="sampleattn", options=options_of_range(number))
    torch.testing.assert_close(actual, logits(by_hand, length), rtol=0, atol=0)
    lossless = torch.allclose(actual, logits(llama, length), rtol=1e-4, atol=1e-4)
    assert lossless == (number == 0), "the sparse range loses something on a random model"


def test_one_graph_a_range_under_symbolic_lengths(llama, profile):
    from sa_compile.report import collect

    compiled = torch.compile(
        llama, backend="sampleattn", options={"profile": profile, "inner": "eager"}, dynamic=True
    )
    with collect() as reports:
        for length in (20, 25, 40, 70, 33, 79, 90, 111, 80, 130, 200, 112, 31, 64):
            logits(compiled, length)
    taken = [[(s.outcome, s.profile_range) for s in report.sites] for report in reports]
    assert taken == [
        [("exact", "")] * 2,
        [("sampled", "32 to 79")] * 2,
        [("sampled", "80 to 111")] * 2,
        [("exact", "112 and more")] * 2,
    ]
    assert all(isinstance(s.q_len, str) for report in reports for s in report.sites)


@torch.no_grad()
def test_a_range_may_look_for_peaks(llama, tmp_path, known):
    options = {**BLOCKS, "peak": 0.3, "landmarks": 3, "window_blocks": 1, "last_rows": 0}
    path = write_profile(tmp_path / "p.json", known, [(32, None, options)])
    report = sa_compile.explain(llama, prompt(96), use_cache=False, options={"profile": path})
    assert "peak=0.3" in report.sites[0].reason and "landmarks=3" in report.sites[0].reason
    compiled = torch.compile(llama, backend="sampleattn", options={"profile": path, "inner": "eager"})
    found = logits(compiled, 96)
    torch._dynamo.reset()
    by_hand = {**options, "min_seq_len": 32, "inner": "eager"}
    by_hand = torch.compile(llama, backend="sampleattn", options=by_hand)
    assert torch.equal(found, logits(by_hand, 96))


def test_the_report_says_which_range_and_what_was_compared(llama, profile):
    with torch.no_grad():
        report = sa_compile.explain(llama, prompt(96), use_cache=False, options={"profile": profile})
    text = " ".join(str(report).split())
    assert "fits the model of profile" in text and "2 attentions, 8 weights, values of 8" in text
    reason = report.sites[0].reason
    assert reason.startswith("profile, 80 to 111: ") and "alpha_c=0.3, alpha_s=0.3, chunk_n=1" in reason
    assert "keep_sink" not in reason, "options at their defaults are left out"
    assert report.to_dict()["sites"][0]["profile_range"] == "80 to 111"


def test_settings_of_a_range_may_change_the_block_sizes(llama, tmp_path, known):
    wide = {**SPARSE, "block_q": 32}
    path = write_profile(tmp_path / "p.json", known, [(32, 79, SPARSE), (80, None, wide)])
    with torch.no_grad():
        report = sa_compile.explain(
            llama, prompt(96), use_cache=False, options={"profile": path, "stats": True}
        )
    ops = [n for n in report.graphs[0].graph.nodes if "block_sparse_attention" in str(n.target)]
    assert [n.args[-2:] for n in ops] == [(32, 16), (32, 16)]
    assert 0 < report.stats().density < 1


@pytest.mark.parametrize(
    "version, budget, means, rest, peak, landmarks",
    [
        (1, 1.0, True, 0.5, 1.0, 15),
        (2, 0.025, False, 0.0, 1.0, 15),
        (3, 0.02, False, 0.0, 1.0, 15),
        (4, 0.025, False, 0.5, 1.0, 15),
        (5, 0.025, False, 0.5, ADAPTIVE_PEAK, ADAPTIVE_LANDMARKS),
    ],
)
def test_a_file_of_other_defaults_means_what_it_meant(
    version, budget, means, rest, peak, landmarks, known, tmp_path
):
    data = profile_data(known, [(32, 63, {"tau": 0.3}), (64, None, {"method": "stride"})])
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**data, "version": version}))
    first, second = (one.options for one in load_profile(str(path)).ranges)
    found = SampleAttentionConfig(**first)
    assert (found.tau, found.budget, found.means, found.rest) == (0.3, budget, means, rest)
    assert (found.peak, found.landmarks) == (peak, landmarks)
    assert second == {"method": "stride"}


def changed(model, **overrides):
    return {**model, **overrides}


BAD_FILES = [
    pytest.param(None, FileNotFoundError, "no such file", id="missing"),
    pytest.param("{", ValueError, "is not JSON", id="not-json"),
    pytest.param({"format": "other"}, ValueError, "is no profile", id="another-format"),
    pytest.param(
        {"version": 99}, ValueError, "format version 99, this sa_compile reads 1 to 5", id="version"
    ),
    pytest.param({"version": [3]}, ValueError, r"format version \[3\], this", id="version-in-a-list"),
    pytest.param({"model": {}}, ValueError, "is incomplete", id="no-fingerprint"),
    pytest.param({"ranges": []}, ValueError, "has no ranges", id="no-ranges"),
    pytest.param(
        {
            "ranges": [
                {"first": 32, "last": 63, "options": None},
                {"first": 65, "last": None, "options": None},
            ]
        },
        ValueError,
        "32 to 63 must end where 65 and more begins",
        id="gap",
    ),
    pytest.param(
        {"ranges": [{"first": 32, "last": None, "options": {"alpha_c": 2.0}}]},
        ValueError,
        r"range 32 and more: option 'alpha_c' must be in \(0, 1\], got 2.0",
        id="bad-option",
    ),
    pytest.param(
        {"ranges": [{"first": 32, "last": None, "options": {"trace": "x"}}]},
        ValueError,
        "unknown option 'trace'; a profile may set method, alpha_c",
        id="no-option-of-a-range",
    ),
]


@pytest.mark.parametrize("content, error, message", BAD_FILES)
def test_bad_files_are_clear_errors_when_compiling(llama, tmp_path, known, content, error, message):
    path = tmp_path / "profile.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_text(json.dumps({**profile_data(known, RANGES), **content}))
    with pytest.raises(error, match=message):
        SampleAttentionConfig.from_options({"profile": str(path)})
    with pytest.raises(BackendCompilerFailed, match=message):
        logits(torch.compile(llama, backend="sampleattn", options={"profile": str(path)}), 64)


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param(
            {"alpha_c": 0.5}, "option alpha_c=0.5 contradicts profile .*says alpha_c=1.0 for 32", id="value"
        ),
        pytest.param({"block_q": 128}, "option block_q=128 contradicts .*says block_q=16", id="the-default"),
        pytest.param(
            {"min_seq_len": 4096}, "min_seq_len=4096 contradicts .*begins at 32", id="shortest-prompt"
        ),
    ],
)
def test_options_that_contradict_the_profile_are_an_error_that_names_both(profile, options, message):
    with pytest.raises(ValueError, match=message):
        SampleAttentionConfig.from_options({"profile": profile, **options})


def test_options_that_agree_with_the_profile_or_that_it_leaves_open_are_taken(profile):
    options = {"profile": profile, **BLOCKS, "min_seq_len": 32, "keep_sink": False}
    config = SampleAttentionConfig.from_options(options)
    assert all(config.in_range(one).keep_sink is False for one in config.tuned.ranges)


def with_changed_weight(llama):
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.01)
        other.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
        for parameter in other.parameters():
            parameter.mul_(1.001)
    return other


WRONG_MODELS = [
    pytest.param(
        lambda _: tiny_llama(num_key_value_heads=4), "attention with 4/2 heads of 16.*here 4/4", id="heads"
    ),
    pytest.param(lambda _: tiny_llama(num_hidden_layers=3), "2 attentions with .*, here 3", id="layers"),
    pytest.param(
        lambda _: tiny_llama(intermediate_size=96), "mlp.* of .*64.*float32, here .*96", id="weight-shape"
    ),
    pytest.param(lambda _: tiny_llama().bfloat16(), "float32, here .*bfloat16", id="dtype"),
    pytest.param(with_changed_weight, "other values in model.", id="fine-tuned"),
]


@pytest.mark.parametrize("make, message", WRONG_MODELS)
def test_another_model_is_an_error_at_compile_time(llama, profile, make, message):
    compiled = torch.compile(
        make(llama), backend="sampleattn", options={"profile": profile, "inner": "eager"}
    )
    with pytest.raises(BackendCompilerFailed, match=f"tuned for another model.*{message}"):
        logits(compiled, 64)


def test_the_check_with_the_model_at_hand_is_stricter(llama, profile):
    sa_compile.check_profile(llama, profile)
    other = copy.deepcopy(llama)
    other.model.norm.register_parameter("bias", torch.nn.Parameter(torch.zeros(64)))
    with pytest.raises(WrongModel, match="parameters, here"):
        sa_compile.check_profile(other, profile)
    with torch.no_grad(), pytest.raises(WrongModel, match="parameters, here"):
        sa_compile.explain(other, prompt(64), options={"profile": profile})
    fewer = tiny_llama(num_hidden_layers=1)
    with pytest.raises(WrongModel, match="parameters, here"):
        sa_compile.check_profile(fewer, profile)


def test_prompts_that_take_no_range_are_not_held_to_the_profiles_model(profile):
    other = tiny_llama(num_key_value_heads=4)
    compiled = torch.compile(other, backend="sampleattn", options={"profile": profile, "inner": "eager"})
    torch.testing.assert_close(logits(compiled, 20), logits(other, 20), rtol=1e-4, atol=1e-4)


def test_a_graph_without_the_named_weights_says_that_it_was_compared_by_shape_only(tmp_path, known):
    renamed = [{**weight, "name": f"elsewhere.{n}"} for n, weight in enumerate(known["weights"])]
    path = write_profile(tmp_path / "p.json", changed(known, weights=renamed), RANGES)
    compiled = torch.compile(tiny_llama(), backend="sampleattn", options={"profile": path, "inner": "eager"})
    with pytest.warns(UserWarning, match="only the shapes of its attentions were compared"):
        logits(compiled, 64)
