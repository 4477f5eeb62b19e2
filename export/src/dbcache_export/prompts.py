"""How pipelines clean prompts before they are tokenized, as rules that the engine follows (models/README.md)."""

from __future__ import annotations

__all__ = ["CAPTION", "NO_PICTURES", "WAN", "Rule"]

from collections.abc import Sequence
from typing import Any

#: A rule's name, or `{"replace": {"pattern", "with", "if_more_than"}}`; patterns are those of Python's `re`.
Rule = str | dict[str, Any]


def _replace(pattern: str, by: str = "", **more: int) -> Rule:
    return {"replace": {"pattern": pattern, "with": by} | more}


#: Wan: entities twice, any white space is one space.
WAN: Sequence[Rule] = ("fix_text", "html_unescape", "html_unescape", "strip", _replace(r"\s+", " "), "strip")

#: FLUX.2 with Mistral: the word that stands for a picture.
NO_PICTURES: Sequence[Rule] = (_replace(r"\[IMG\]"),)

_FILES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_SITES = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"

#: Once through PixArt's cleaning of captions from the web, made for training data.
_CAPTION: Sequence[Rule] = (
    "url_unquote",
    "strip",
    "lowercase",
    _replace("<person>", "person"),
    # Addresses of web sites.
    _replace(rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_SITES})"),
    _replace(rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_SITES})"),
    "refuse_markup",
    # Nicknames; then Chinese characters and what stands around them in Unicode.
    _replace(r"@[\w\d]+\b"),
    _replace("[\u31c0-\u9fff]+"),
    # Dashes and quotation marks of all kinds to one kind.
    _replace(f"[{_DASHES}]+", "-"),
    _replace("[`´«»“”¨]", '"'),
    _replace("[‘’]", "'"),
    _replace("&quot;?"),
    _replace("&amp"),
    # Addresses of machines, a time at the end, line breaks that are written out, numbers of articles, names of files.
    _replace(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    _replace(r"\d:\d\d\s+$"),
    _replace(r"\\n", " "),
    _replace(r"#\d{1,3}\b"),
    _replace(r"#\d{5,}\b"),
    _replace(r"\b\d{6,}\b"),
    _replace(rf"[\S]+\.{_FILES}"),
    # Punctuation.
    _replace("[\"']{2,}", '"'),
    _replace(r"[.]{2,}", " "),
    _replace(r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    _replace(r"\s+\.\s+", " "),
    _replace("[-_]", " ", if_more_than=3),
    "fix_text",
    "html_unescape",
    "html_unescape",
    # Words of letters and digits.
    _replace(r"\b[a-zA-Z]{1,3}\d{3,15}\b"),
    _replace(r"\b[a-zA-Z]+\d+[a-zA-Z]+\b"),
    _replace(r"\b\d+[a-zA-Z]+\d+\b"),
    # Words of shops.
    _replace(r"(worldwide\s+)?(free\s+)?shipping"),
    _replace(r"(free\s)?download(\sfree)?"),
    _replace(r"\bclick\b\s(?:for|on)\s\w+"),
    _replace(rf"\b{_FILES}(\simage[s]?)?"),
    _replace(r"\bpage\s+\d+\b"),
    _replace(r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    # Sizes: the letter between the numbers may be Latin or Cyrillic.
    _replace("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b"),
    _replace(r"\b\s+:\s+", ": "),
    _replace(r"(\D[,./])\b", "$1 "),
    _replace(r"\s+", " "),
    # Quotes around everything, and signs at both ends.
    _replace("^[\"']([\\w\\W]+)[\"']$", "$1"),
    _replace(r"^['_,\-:;]"),
    _replace(r"['_,\-:+]$"),
    _replace(r"^\.\S+$"),
    "strip",
)

#: PixArt cleans twice, where the packages are installed that its pipeline asks for.
CAPTION: Sequence[Rule] = (*_CAPTION, *_CAPTION)
