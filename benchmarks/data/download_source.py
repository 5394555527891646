"""Where the files of a data set come from: the `download:` section of its card."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from benchmarks.yaml_files import Strict

HUB = "https://huggingface.co/datasets/"
Kind = Literal["direct", "hub", "drive", "cityscapes", "login"]


class Archive(Strict):
    """One file to fetch, or several that differ in a part of their name.

    Attributes:
        name: file name; {part} stands for each of `parts`. On a hub a pattern of paths ("rgb/*").
        parts: values of {part}, as file names spell them.
        bytes: exact size of each file, where it is published.
        gigabytes: about how many 10^9 bytes all of them have, where only that is known.
        md5: hexadecimal digest, where it is published.
        sha256: the same.
        into: folder below the data set's into which the archive is unpacked.
        strip: leading folder that is left out where the archive has it.
        only: patterns of the files inside that are unpacked; none: all of them.
    """

    name: str
    parts: tuple[str, ...] = ()
    bytes: Annotated[int, Field(gt=0)] | None = None
    gigabytes: Annotated[float, Field(gt=0)] | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    into: str = "."
    strip: str = ""
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_place(self) -> Archive:
        if ("{part}" in self.name) != bool(self.parts):
            raise ValueError("a name with {part} needs parts, and the other way round")
        if self.parts and (self.md5 or self.sha256):
            raise ValueError("a digest belongs to one file: list each part on its own")
        into = PurePosixPath(self.into)
        if into.is_absolute() or ".." in into.parts:
            raise ValueError("into must stay below the data set's folder")
        return self

    def each(self) -> tuple[Archive, ...]:
        """One `Archive` per file, without placeholders."""
        if not self.parts:
            return (self,)
        share = self.gigabytes and self.gigabytes / len(self.parts)
        return tuple(
            self.model_copy(
                update={"name": self.name.format(part=part), "parts": (), "gigabytes": share}
            )
            for part in self.parts
        )

    @property
    def about(self) -> int | None:
        """Bytes of one file, exact or about; None if the card does not know."""
        if self.bytes is not None:
            return self.bytes
        return self.gigabytes and int(self.gigabytes * 1e9)


class Source(Strict):
    """One way to get a data set.

    Attributes:
        kind: "direct", files of a web server; "hub", a data set on the Hugging Face hub; "drive", a
            folder on Google Drive, all of it; "cityscapes", packages for csDownload; "login", files
            that people fetch themselves from a page that wants an account.
        url: what file names are appended to (direct), or the page.
        note: what to know before: terms, what could not be verified.
    """

    kind: Kind
    url: Annotated[str, Field(pattern="^https?://[^@]+$")]
    note: str = ""
    files: tuple[Archive, ...] = ()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Source:
        if not self.files and self.kind != "drive":
            raise ValueError(f"{self.kind} needs files")
        if self.kind == "hub" and not re.fullmatch(f"{HUB}[\\w.-]+/[\\w.-]+", self.url):
            raise ValueError(f"the url of a hub is {HUB}OWNER/NAME")
        if self.kind != "hub" and any("/" in archive.name for archive in self.files):
            raise ValueError("the name of a file holds no /")
        return self

    def archives(self) -> tuple[Archive, ...]:
        """Every file, without placeholders."""
        return tuple(one for archive in self.files for one in archive.each())

    @property
    def repository(self) -> str:
        """OWNER/NAME of a hub's data set."""
        return self.url.removeprefix(HUB)
