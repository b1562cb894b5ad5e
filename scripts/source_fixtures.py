"""Makes the fixtures of data sources: the same six samples as LLaVA's JSON with a folder of pictures,
as Parquet files of several shapes written by `datasets` and pyarrow, and as a tar file written by
`webdataset`.

    python scripts/source_fixtures.py        # from the repository's root

Needs datasets, numpy, pillow, pyarrow and webdataset.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

OUT = Path("sq-llava-data/tests/fixtures/sources")
ROWS = [
    ("cup", "coco/cup.png", "What is on the table?", "A cup."),
    ("tree", "coco/tree.png", "What grows here?", "A tall tree."),
    ("text", None, "What is two and two?", "Four."),
    ("sea", "vg/sea.jpg", "What colour is the water?", "Blue and green."),
    ("road", "vg/road.png", "Where does it lead?", "To the town."),
    ("sky", "vg/sky.png", "Is it day?", "It is night."),
]


def picture(number, path):
    """A few hundred bytes that look unlike those of other pictures."""
    y, x = np.mgrid[0 : 24 + 4 * number, 0:32]
    planes = [128 + 100 * np.sin((x * (number + 1) + y * k) / 9) for k in (1, 2, 5)]
    image = Picture.fromarray(np.stack(planes, -1).astype(np.uint8))
    out = io.BytesIO()
    image.save(out, "JPEG" if path.endswith("jpg") else "PNG")
    return out.getvalue()


def main():
    (OUT / "pictures").mkdir(parents=True, exist_ok=True)
    bytes_of = {}
    for number, (_, path, _, _) in enumerate(ROWS):
        if path:
            bytes_of[path] = picture(number, path)
            (OUT / "pictures" / path).parent.mkdir(exist_ok=True)
            (OUT / "pictures" / path).write_bytes(bytes_of[path])

    def llava(key, path, question, answer):
        mark = "<image>\n" if path else ""
        turns = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
        turns += [{"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes."}]
        return {"id": key} | ({"image": path} if path else {}) | {"conversations": turns}

    samples = [llava(*row) for row in ROWS]
    (OUT / "data.json").write_text(json.dumps(samples, indent=1) + "\n")

    def inside(path):
        return path and {"bytes": bytes_of[path], "path": path}

    turn = {"from": Value("string"), "value": Value("string")}
    features = Features({"id": Value("string"), "image": Image(), "conversations": [turn]})
    rows = [s | {"image": inside(s.get("image"))} for s in samples]
    Dataset.from_list(rows, features=features).to_parquet(OUT / "datasets.parquet", batch_size=2)

    # A list of pictures, messages as chat programs have them, and another codec for each file.
    roles = {"human": "user", "gpt": "assistant"}
    chats = [
        {
            "id": s["id"],
            "images": [inside(s["image"])] if "image" in s else [],
            "messages": [{"role": roles[t["from"]], "content": t["value"]} for t in s["conversations"]],
        }
        for s in samples
    ]
    message = {"role": Value("string"), "content": Value("string")}
    features = Features({"id": Value("string"), "images": List(Image()), "messages": [message]})
    table = Dataset.from_list(chats, features=features).data.table
    pq.write_table(table, OUT / "messages.parquet", compression="zstd", row_group_size=4, data_page_version="2.0")

    # Parts of messages, one of them the picture; structs of lists, as `Sequence` once made them.
    parts = [
        {
            "id": s["id"],
            "images": [inside(s["image"])] if "image" in s else None,
            "messages": [
                {
                    "role": roles[t["from"]],
                    "content": ([{"type": "image", "text": None}] if t["value"].startswith("<image>") else [])
                    + [{"type": "text", "text": t["value"].removeprefix("<image>")}],
                }
                for t in s["conversations"]
            ],
        }
        for s in samples
    ]
    pq.write_table(pa.Table.from_pylist(parts), OUT / "parts.parquet", compression="brotli")
    lists = [
        {
            "id": s["id"],
            "image": inside(s.get("image")),
            "conversations": {k: [t[k] for t in s["conversations"]] for k in ("from", "value")},
        }
        for s in samples
    ]
    pq.write_table(pa.Table.from_pylist(lists), OUT / "lists.parquet", compression="gzip")

    # Columns of their own names, one turn, bytes without a path; then paths alone.
    shown = [row for row in ROWS if row[1]]
    own = [{"key": k, "photo": bytes_of[p], "q": q, "a": a, "score": 0.5} for k, p, q, a in shown]
    pq.write_table(pa.Table.from_pylist(own), OUT / "columns.parquet", compression="lz4", row_group_size=2)
    paths = [s | {"image": s.get("image")} for s in samples]
    pq.write_table(pa.Table.from_pylist(paths), OUT / "paths.parquet", compression="none")
    # Two pictures in a row, the first of them missing in between.
    two = [
        {
            "images": [inside("coco/cup.png"), None, inside("vg/sky.png")],
            "conversations": [
                {"from": "human", "value": "<image><image>Which?"},
                {"from": "gpt", "value": "Both."},
            ],
        }
    ] * 3
    pq.write_table(pa.Table.from_pylist(two), OUT / "two.parquet", compression="snappy")

    with webdataset.TarWriter(str(OUT / "data.tar"), mtime=0) as tar:
        for s in samples:
            sample = {"__key__": s["id"], "json": s}
            if "image" in s:
                sample[s["image"].rsplit(".", 1)[1]] = bytes_of[s["image"]]
            tar.write(sample)
    with webdataset.TarWriter(str(OUT / "captions.tar"), mtime=0) as tar:
        for number, (_, path, _, answer) in enumerate(shown):
            sample = {"__key__": f"a/{number:04}", path.rsplit(".", 1)[1]: bytes_of[path], "txt": answer}
            # As img2dataset has it: what is known of the picture, beside its caption.
            if number % 2:
                sample["json"] = {"caption": "no", "key": f"{number:04}", "width": 32}
            tar.write(sample)


if __name__ == "__main__":
    main()
