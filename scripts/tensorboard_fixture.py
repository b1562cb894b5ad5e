"""Writes the event file that the tests of `sq-llava-train/src/report/tensorboard` compare with.

With TensorBoard's own messages and writer (pip install tensorboard):

    python scripts/tensorboard_fixture.py sq-llava-train/tests/fixtures/tensorboard.events
"""

import sys
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.record_writer import RecordWriter

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def events():
    yield Event(wall_time=1.5, file_version="brain.Event:2")
    yield Event(wall_time=2.5, step=3, session_log=SessionLog(status=SessionLog.START))
    yield Event(
        wall_time=3.5,
        step=3,
        summary=Summary(
            value=[
                Summary.Value(tag="loss", simple_value=0.25),
                Summary.Value(tag="lr_llm", simple_value=2e-4),
            ]
        ),
    )
    text = TensorProto(
        dtype="DT_STRING",
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        string_val=["What is it? – **a cat**".encode()],
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    yield Event(
        wall_time=4.5,
        step=300,
        summary=Summary(value=[Summary.Value(tag="sample 1", tensor=text, metadata=metadata)]),
    )
    image = Summary.Image(height=1, width=1, colorspace=3, encoded_image_string=PNG)
    yield Event(
        wall_time=5.5,
        step=300,
        summary=Summary(value=[Summary.Value(tag="sample 1", image=image)]),
    )


def main():
    with open(Path(sys.argv[1]), "wb") as file:
        writer = RecordWriter(file)
        for event in events():
            writer.write(event.SerializeToString())
        writer.flush()


if __name__ == "__main__":
    main()
