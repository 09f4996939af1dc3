"""Video and picture files in, video files out. The only part of the project that starts ffmpeg.

    file ─ scan ─ reading ─► frames ─► writing, or segments ─ encoding ─► silent pieces ─ joining ─► file
            │                                                                                │
            └───────────────────────────── times, colour, sound ─────────────────────────────┘

Frames are RGB uint8 (H, W, 3), upright (rotation applied), with square pixels (a sample aspect ratio within 0.5 % of
1 counts as square), 8 bit, deinterlaced one for one. Every frame comes exactly once: none is dropped or doubled for an
even rate. Streams have back-pressure both ways: ffmpeg waits when nobody reads, `write` for ffmpeg.

    process   starts ffmpeg, keeps it from opening what is no plain local file, understands its complaints
    packets   its tables of packets and frames
    colour    which matrix, and what is done about high dynamic range
    images    picture files: read_image, is_image, …
    scan      what a video is: probe, timestamps, VideoInfo
    metadata  its tags: read_metadata
    reading   its frames: open_reader
    matroska  how frames with times of their own go into ffmpeg
    encoding  what is to be written (Film), and frames into a silent piece of it (Encoder)
    sound     the sound of another video under it
    joining   pieces and sound to the whole
    writing   open_writer, check_out
    segments  long videos, which can be interrupted: open_segments

Each uses only those above it.
"""

from .colour import Colour
from .images import MAX_PIXELS, is_image, picture_size, pictures_in, read_image
from .metadata import read_metadata
from .process import ffmpeg
from .reading import open_reader
from .scan import VideoInfo, probe, timestamps
from .segments import SEGMENT, open_segments
from .writing import check_out, open_writer

__all__ = [
    "MAX_PIXELS",
    "SEGMENT",
    "Colour",
    "VideoInfo",
    "check_out",
    "ffmpeg",
    "is_image",
    "open_reader",
    "open_segments",
    "open_writer",
    "picture_size",
    "pictures_in",
    "probe",
    "read_image",
    "read_metadata",
    "timestamps",
]
