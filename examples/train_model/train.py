"""Train the small long-context retrieval model that the examples use.

    python examples/train_model/train.py --out DIR --seconds 500 --seed 0

Writes a Hugging Face model folder (config, bfloat16 weights, tokenizer, generation config) and training.json
into DIR. Everything follows the clock: the context grows from 512 to 32768 tokens in stages, each of which
ends early once plain retrieval is solved; the learning rate is constant for 55 % of the time and then falls
linearly. The corpus is prepared once (about a minute) and kept in DIR/corpus unless --corpus names a prepared
folder. Stages end by the clock and batches come from racing workers, so a seed does not fix every bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus
import torch
from evaluate import LENGTHS, environment, evaluate, table_lines
from model import Llama, Shape
from optimizer import Optimizer
from safetensors.torch import load_file
from sequences import ANSWER, BatchSource, SequenceBuilder
from tasks import TASKS, vocabulary
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

# (context lengths drawn from, share of the time at most). The last stage takes what is left.
STAGES = (
    ((512,), 0.22),
    ((1024,), 0.10),
    ((2048,), 0.10),
    ((4096,), 0.10),
    ((8192,), 0.10),
    ((16384,), 0.12),
    ((2048, 4096, 8192, 8192, 16384, 16384, 32768, 32768), 1.0),
)
SOLVED = 0.985  # token accuracy of needle and key-value answers that ends a stage early
LOG_EVERY = 50  # steps


@dataclass
class Clock:
    """Where in the run we are, as a share of its seconds."""

    seconds: float
    begin: float = 0.0

    def share(self) -> float:
        return min(1.0, (time.time() - self.begin) / self.seconds)


def learning_rate(peak: float, share: float) -> float:
    """Warm-up over 2 % of the run, constant up to 55 %, then linear to 2 % of the peak."""
    return peak * min(1.0, 0.05 + share / 0.02, 0.02 + 0.98 * (1 - share) / 0.45)


class Curriculum:
    """Which stage of `STAGES` the run is in; `update` moves on by time or by accuracy."""

    def __init__(self, longest: int, *, last: bool) -> None:
        fitting = [([n for n in lengths if n <= longest], share) for lengths, share in STAGES]
        self.stages = [stage for stage in fitting if stage[0]]
        self.index, self.since = len(self.stages) - 1 if last else 0, 0.0

    @property
    def lengths(self) -> list[int]:
        return self.stages[self.index][0]

    def update(self, share: float, accuracy: dict[str, float]) -> bool:
        """True if a new stage begins. A stage lasts at least a third of its share."""
        if self.index == len(self.stages) - 1:
            return False
        spent, most = share - self.since, self.stages[self.index][1]
        solved = min(accuracy.get("needle", 0), accuracy.get("kv", 0)) >= SOLVED
        if spent < most and not (solved and spent >= most / 3):
            return False
        self.index, self.since = self.index + 1, share
        return True


def train(options: argparse.Namespace, model: Llama, source: BatchSource, device: torch.device) -> dict:
    """Run until the clock ends; returns steps, tokens and the log (one entry for every `LOG_EVERY` steps)."""
    optimizer, curriculum = Optimizer(model), Curriculum(options.longest, last=options.init is not None)
    source.start(curriculum.lengths)
    classes = ANSWER + len(TASKS)
    sums = torch.zeros(3, classes, device=device)
    log: list[dict] = []
    step = tokens = 0
    clock = Clock(options.seconds, time.time())
    while clock.share() < 1.0:
        ids, kinds = (torch.from_numpy(part) for part in source.next())
        ids, kinds = ids.to(device, non_blocking=True).long(), kinds.to(device, non_blocking=True).long()
        objective, *parts = model(ids, kinds)
        objective.backward()
        optimizer.step(learning_rate(options.lr, clock.share()))
        sums += torch.stack(parts)
        step, tokens = step + 1, tokens + ids.shape[0] * (ids.shape[1] - 1)
        if step == 1:
            # The clock starts when everything is compiled.
            if device.type == "cuda":
                torch.cuda.synchronize()
            print(f"first step after {time.time() - clock.begin:.0f} s", flush=True)
            clock.begin = time.time()
        if step % options.log_every == 0:
            loss, right, count = sums.tolist()
            sums.zero_()
            accuracy = {task: right[i] / count[i] for i, task in enumerate(TASKS, ANSWER) if count[i]}
            entry = {
                "step": step,
                "tokens": tokens,
                "seconds": round(time.time() - clock.begin, 1),
                "length": ids.shape[1] - 1,
                "text_loss": round(loss[1] / max(count[1], 1), 4),
                "answer_loss": round(sum(loss[ANSWER:]) / max(sum(count[ANSWER:]), 1), 4),
                "answer_token_accuracy": {task: round(value, 4) for task, value in accuracy.items()},
            }
            log.append(entry)
            if not entry["text_loss"] < 20:
                raise RuntimeError(f"training diverged: {entry}")
            marks = " ".join(f"{task} {value:.2f}" for task, value in accuracy.items())
            print(f"{step:6d} {tokens / 1e6:7.1f}M {entry['seconds']:6.1f}s ctx {entry['length']:5d} "
                  f"text {entry['text_loss']:.3f} | {marks}", flush=True)  # fmt: skip
            if curriculum.update(clock.share(), accuracy):
                source.ask(curriculum.lengths)
    return {"steps": step, "tokens": tokens, "seconds": round(time.time() - clock.begin, 1), "log": log}


def save_tokenizer(folder: Path, tokenizer_file: Path) -> None:
    """The tokenizer and the generation config as transformers' Auto classes read them."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=corpus.BEGIN,
        eos_token=corpus.END,
        pad_token=corpus.END,
        model_max_length=Shape.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    # An answer ends with its line, so a newline ends generation.
    begin, end, newline = (tokenizer.token_to_id(token) for token in (corpus.BEGIN, corpus.END, "Ċ"))
    GenerationConfig(
        bos_token_id=begin, eos_token_id=[end, newline], pad_token_id=end, max_new_tokens=16
    ).save_pretrained(folder)


@torch.no_grad()
def export_difference(model: Llama, folder: Path) -> float:
    """The largest difference of logits between the folder and the training model with rounded weights.

    In float32 on the CPU, over 700 random tokens.
    """
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rounded = Llama(model.shape, classes=model.classes, dtype=torch.float32, compiled=False)
    rounded.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    ids = torch.randint(2, model.shape.vocab_size, (1, 700))
    norm = rounded.model["norm"](rounded.hidden(ids))
    logits = norm @ rounded.model["embed_tokens"].weight.T
    return (logits - exported(input_ids=ids).logits[0]).abs().max().item()


def git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seconds", type=float, default=500.0, help="training time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--corpus", type=Path, help="prepared corpus folder (default: OUT/corpus, made if missing)"
    )
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--batch-tokens", type=int, default=131072, help="tokens a step")
    parser.add_argument("--longest", type=int, default=32768, help="longest context")
    parser.add_argument("--workers", type=int, default=12, help="data processes")
    parser.add_argument("--log-every", type=int, default=LOG_EVERY, help="steps between log lines")
    parser.add_argument("--layers", type=int, default=Shape.num_hidden_layers)
    parser.add_argument("--init", type=Path, help="start from this folder's weights, at the last stage")
    parser.add_argument("--count", type=int, default=200, help="evaluation documents a length")
    parser.add_argument("--single", type=int, default=40, help="one-question documents a task and length")
    parser.add_argument("--revision", default="", help="git commit to record (default: asks git)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, prepared = options.out, options.corpus or options.out / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    if not (prepared / "manifest.json").exists():
        corpus.prepare(prepared, [vocabulary()] * 6000)
    # Workers fork before the GPU is touched.
    source = BatchSource(prepared, options.seed, options.batch_tokens, options.workers)
    on_gpu = device.type == "cuda"
    model = Llama(
        Shape(num_hidden_layers=options.layers),
        classes=ANSWER + len(TASKS),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        compiled=on_gpu,
    )
    if options.init:
        model.load_state_dict(load_file(options.init / "model.safetensors"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters on {device}", flush=True)
    try:
        run = train(options, model.to(device), source, device)
    finally:
        source.stop()
    model.export(folder)
    save_tokenizer(folder, prepared / "tokenizer.json")
    # Folders differ from machine to machine; all else is what a second run needs.
    local = {"out", "corpus", "init", "revision"}
    record = {
        "arguments": {key: value for key, value in vars(options).items() if key not in local},
        "revision": options.revision or git_revision(),
        **environment(device),
        "parameters": parameters,
        "shape": asdict(model.shape),
        "corpus": json.loads((prepared / "manifest.json").read_text()),
        "training": run,
        "export_logit_difference": export_difference(model, folder),
    }
    path = folder / "training.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved after {run['seconds']} s; logits differ by {record['export_logit_difference']:.1e}")

    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    lengths = [length for length in LENGTHS if length <= options.longest] or [options.longest]
    seed = options.seed + 1_000_000
    results = evaluate(
        exported, SequenceBuilder.load(prepared, "test"), seed, options.count, options.single, lengths
    )
    asked = {"seed": seed, "count": options.count, "single": options.single}
    record["evaluation"] = {"arguments": asked, **environment(device), "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(table_lines(results)))


if __name__ == "__main__":
    main()
