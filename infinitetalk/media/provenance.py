"""The mark of media made by AI, as machines read it: IPTC's digital source type in XMP, in an MP4 and in a JPEG.

An MP4 carries XMP in a box of its own (XMP specification, part 3). Here it is the last box: nothing before it moves, so
that a player that begins with the first bytes finds all that it needs as before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import quoteattr

from infinitetalk.errors import EncodeError

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type of media made by a model that was trained on samples of others."""

COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
"""IPTC's digital source type of media of which a part is such."""

XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
"""The type of the MP4 box that holds XMP."""

PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
    <rdf:Description rdf:about=""
        xmlns:xmp="http://ns.adobe.com/xap/1.0/"
        xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
        Iptc4xmpExt:DigitalSourceType={source_type}
        Iptc4xmpExt:AISystemUsed={system}
        Iptc4xmpExt:AISystemVersionUsed={version}
        xmp:CreatorTool={tool}/>
  </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


@dataclass(frozen=True)
class Mark:
    """The mark of a video and its thumbnail.

    Attributes:
        software: the program that made them.
        version: its version.
        model: name of the model.
        is_composite: whether a part of each frame is another recording's own.
    """

    software: str
    version: str
    model: str
    is_composite: bool = False

    @property
    def source_type(self) -> str:
        """IPTC's digital source type."""
        return COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA if self.is_composite else TRAINED_ALGORITHMIC_MEDIA

    @property
    def tool(self) -> str:
        """The program with its version."""
        return f"{self.software} {self.version}"

    @property
    def sentence(self) -> str:
        """The mark as people read it."""
        made = "Made in part by AI" if self.is_composite else "Made by AI"
        return f"{made}: {self.tool}, model {self.model}"

    @property
    def xmp(self) -> bytes:
        """The mark as an XMP packet in UTF-8; equal marks give equal bytes."""
        packet = PACKET.format(
            source_type=quoteattr(self.source_type),
            system=quoteattr(f"{self.software}, model {self.model}"),
            version=quoteattr(self.version),
            tool=quoteattr(self.tool),
        )
        return packet.encode()


def append_xmp(video: Path, mark: Mark) -> None:
    """Adds the box with a mark to a finished MP4.

    Raises:
        EncodeError: the file could not be written.
    """
    content = XMP_BOX.bytes + mark.xmp
    try:
        with video.open("ab") as file:
            file.write(struct.pack(">I4s", 8 + len(content), b"uuid") + content)
    except OSError as error:
        raise EncodeError("The video could not be marked as made by AI") from error
