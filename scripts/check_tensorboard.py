"""Reads the events of a run with TensorBoard's own reader and compares them with the run's logs.

    pip install tensorboard
    python scripts/check_tensorboard.py RUN

Every scalar of every step must be that of log.jsonl and validation.jsonl, once, delta of each data
source too; texts and pictures those of samples.jsonl.
"""

import json
import sys
from pathlib import Path

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"check_tensorboard: {error}; install tensorboard", file=sys.stderr)
    sys.exit(2)

KEYS = {"stage", "step", "epoch"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def named(line):
    """The numbers of a line with the names that TensorBoard has for them."""
    deltas = line.get("delta") or {}
    own = {name: value for name, value in line.items() if name not in KEYS | {"delta"}}
    return own | {f"asking/delta/{source}": delta for source, delta in deltas.items()}


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def close(a, b):
    return abs(a - b) <= 1e-6 * max(1.0, abs(a))


def scalars(run, stage, kind, log):
    """Compares a curve of a stage; returns how many numbers it has."""
    log = [line for line in log if line["stage"] == stage]
    if not log:
        return 0
    events = read(run / "tensorboard" / f"stage{stage}{kind}")
    wanted = {}
    for line in log:
        for name, value in named(line).items():
            if value is not None:
                wanted.setdefault(name, []).append((line["step"], value))
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found.keys() == wanted.keys(), f"stage {stage}{kind}: {found.keys()} for {wanted.keys()}"
    for name, points in wanted.items():
        steps = [step for step, _ in points]
        assert [step for step, _ in found[name]] == steps, f"{name}: {found[name]} for {points}"
        for (step, value), (_, other) in zip(points, found[name]):
            assert close(value, other), f"stage {stage}{kind} step {step} {name}: {other} for {value}"
    return sum(map(len, wanted.values()))


def samples(run, stage, log):
    """Compares texts and pictures; returns how many there are."""
    log = [line for line in log if line["stage"] == stage]
    if not log:
        return 0
    events = read(run / "tensorboard" / f"stage{stage}-samples")
    for tag in {line["file"].removesuffix(".png") for line in log}:
        own = [line for line in log if line["file"] == f"{tag}.png"]
        png = (run / "samples" / f"{tag}.png").read_bytes()
        texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
        images = events.Images(tag)
        steps = [line["step"] for line in own]
        assert [step for step, _ in texts] == steps, f"{tag}: {texts}"
        assert [e.step for e in images] == steps, f"{tag}: {[e.step for e in images]}"
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
        for line, (_, text), image in zip(own, texts, images):
            for said in (line["question"], line["answer"], line["asked"] or ""):
                assert said.replace("\n", "\n> ") in text or said in text, f"{tag}: {said!r} in {text!r}"
            assert image.encoded_image_string == png and image.width > 0, f"{tag}: another picture"
    return 2 * len(log)


def main():
    run = Path(sys.argv[1])
    training, validation = lines(run / "log.jsonl"), lines(run / "validation.jsonl")
    said = lines(run / "samples.jsonl")
    numbers = sum(
        scalars(run, stage, kind, log)
        for stage in (1, 2)
        for kind, log in (("", training), ("-validation", validation))
    )
    shown = sum(samples(run, stage, said) for stage in (1, 2))
    assert numbers > 0, "no scalars"
    print(f"{numbers} scalars, {shown} texts and pictures as in the logs")


if __name__ == "__main__":
    main()
