"""Reads what scripts/gpu_day.sh wrote. `table DIR`: the Markdown of docs/performance.md, and all numbers in
DIR/gpu_day.json. `kernels DIR`: launches and time of each kernel in a decoded token and in a training step."""

import json
import re
import sys
from pathlib import Path


def lines(path):
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                pass
    return found


def rate(row):
    return row["per_second"] if "per_second" in row else row.get("tok_s")


def ours(name):
    """The key of PyTorch's row for one of ours, by its words."""
    batch = match[1] if (match := re.search(r", batch (\d+)$", name)) else "1"
    if match := re.match(r"prefill of (\d+) tokens", name):
        return f"prefill_b{batch}x{match[1]}"
    if match := re.match(r"decode \w+ behind (\d+) tokens", name):
        return f"decode_b{batch}_ctx{match[1]}"
    if match := re.match(r"LoRA step, rank 128, (\d+)×(\d+) tokens", name):
        return f"lora_b{match[1]}x{match[2]}_checkpoint{int('recompute' in name)}"
    return None


def table(out):
    steps = lines(out / "steps.jsonl")
    torch = json.loads((out / "torch.json").read_text()) if (out / "torch.json").is_file() else {}
    rows = [row for step in steps for row in lines(out / f"{step['step']}.txt") if "name" in row]
    (out / "gpu_day.json").write_text(json.dumps({"steps": steps, "rows": rows, "torch": torch}, indent=1) + "\n")
    print("| | a second | of the limit | × PyTorch | GiB | PyTorch's |\n|---|---|---|---|---|---|")
    for row in rows:
        other = torch.get(ours(row["name"]))
        share = row.get("share_of_limit")
        ratio = f"{rate(row) / rate(other):.2f}" if other and rate(other) else ""
        share = f"{100 * share:.0f} %" if share else ""
        held = f"{row['device_bytes'] / 2**30:.1f}" if row.get("device_bytes") else ""
        others = f"{other['peak_GiB']:.1f}" if held and other and "peak_GiB" in other else ""
        print(f"| {row['name']} | {rate(row):.4g} {row['unit'].split('/')[0]} | {share} | {ratio} | {held} | {others} |")
    for key, row in torch.items():
        if "tok_s" in row:
            print(f"| PyTorch {key} | {row['tok_s']:.4g} tokens | | | | |")
    print("\n| step | status | seconds |\n|---|---|---|")
    for step in steps:
        print(f"| {step['step']} | {step['status']} | {step['seconds']} |")


def kernels_of(path):
    """Launches and seconds by kernel, from the last summary in CubeCL's log."""
    units = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    found = {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        match = re.fullmatch(r"([\d.]+)(ns|µs|us|ms|s)", cells[1]) if len(cells) == 4 else None
        if cells[0] == "Name":
            found = {}
        elif match and cells[0] != "Total":
            found[cells[0]] = (int(cells[2]), float(match[1]) * units[match[2]])
    return found


def kernels(out):
    one, nine = kernels_of(out / "kernels-1.log"), kernels_of(out / "kernels-9.log")
    train = kernels_of(out / "kernels-train.log")
    # Runs that differ by eight decoded tokens, which the bench decodes twice: once to warm up.
    token = {}
    for name, (count, seconds) in nine.items():
        before = one.get(name, (0, 0.0))
        if count > before[0]:
            token[name] = ((count - before[0]) / 16, (seconds - before[1]) / 16)
    for what, found in (("a decoded token", token), ("the whole run with training steps", train)):
        total = sum(seconds for _, seconds in found.values())
        launches = sum(count for count, _ in found.values())
        print(f"\n{what}: {launches:g} launches, {1000 * total:.2f} ms\n\n| kernel | launches | ms |\n|---|---|---|")
        for name, (count, seconds) in sorted(found.items(), key=lambda item: -item[1][1])[:40]:
            print(f"| {name} | {count:g} | {1000 * seconds:.3f} |")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("table", "kernels"):
        sys.exit(__doc__)
    {"table": table, "kernels": kernels}[sys.argv[1]](Path(sys.argv[2]))
