"""Writes `prompts.json`: what diffusers' pipelines make of prompts before they tokenize them.

Each case names its rules (`dbcache_export.prompts`) and has a prompt and what Python makes of it, with ftfy and
BeautifulSoup. `cleaned` is null where BeautifulSoup takes markup out. `repaired` says whether ftfy repairs a wrong
encoding, which the engine does not do.
"""

from __future__ import annotations

import argparse
import html
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import ftfy
from dbcache_export import prompts
from diffusers import PixArtAlphaPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from reference import REFERENCE_DIR, write_records

__all__ = ["cases", "rules"]

Cleaning = Callable[[str], str]

#: Everyday prompts, and at least one for each thing that a rule looks for.
TEXTS = (
    "a red apple",
    "red&nbsp;apple",
    "red\napple",
    " red  apple ",
    "",
    " ",
    "\t\x1c red\x0b\x85\u2028\u3000apple\x1f\u00a0\u200b",
    "Ein „roter“ Apfel — it’s “fine”… ‘so’ ʼtwas",
    "ﬁsh ﬂood ﬃ ŉ Ǆ ǉ ﬅ ＦＵＬＬ　ｗｉｄｔｈ ｶﾞ ￦",
    "e\u0301 o\u0308 A\u030a \u1100\u1161 \u212b",
    "\x1b[31mred\x1b[0m apple\x1b[ \x1b[1;2mx \x1b\x1b[2Jy",
    "\ufeffa\u200d\ufff9b\u206ac\x00\x07d\x7fe",
    "line\r\none\rtwo\u2029three\u2028four",
    "a \x93quoted\x94 \x80 5 \x81",
    "&lt;b&gt; &amp;amp; &amp;lt; &#65; &#x41 &#xZ &copy &copy; &notit; &hellip",
    "&Eacute; &EACUTE; &NTILDE; &SUP3; &AMP;",
    "&#0; &#13; &#128; &#150; &#x81; &#xD800; &#x110000; &#99999999999999999999; &#1; &#x1FFFE; &#59; &#39;",
    "2 < 3 & 5 > 4 &amp; &eacute;\nsecond &amp; line",
    "&eacute; first\na <b> &eacute; second\n&eacute; third",
    "AT&T black&white R&D &&amp;&",
    "&" + "a" * 40 + ";&CounterClockwiseContourIntegral;&CounterClockwiseContourIntegra",
    "ΟΔΟΣ ΣΑΣ Σ ΑΣ. İSTANBUL Straße ẞ ǅ K Å",
    "A+b%20c%2Bd%C3%A9%zz%e9 100%",
    "see https://example.com/a-b?c and www.example.org/x, foo.co.uk a.gov mail me@example.com now",
    "<person> in a hat, http:/x https:abc ftp.example.net www:abc",
    "by @artist_1 and @some.one #12 #123456 1234567 12345 #abc",
    "日本語 龍 ㍿ ㇰ ䷀ カタカナ 한국어 a",
    "dash–dash—dash−dash‐dash〜〰゠",
    "&quot;quoted&quot &amp &ampersand",
    "ip 192.168.0.1 and at 1:23 ",
    "broken \\n line; file photo.png my_pic.JPEG image png images jpg image",
    "'''many''' \"\"quotes\"\" ... dots.. . end .",
    "***LOUD*** (red) [blue] {green} a|b c\\d e/f ~g §1 50% ½ º ©",
    "this-is-my-cute-cat and this_is_my_cat",
    "jc6640 jc6640vc 6640vc231 j2d1a2a abc12 a1b2 x1",
    "free shipping worldwide shipping download free free download click here click for more page 12",
    "size 512x512, 3.5х4 or 16×9 at 10 : 3 a,b c.d e/f 1,2",
    "'quoted whole prompt'",
    "_leading and trailing+",
    ".hidden",
    ":-)",
    "a photo of [IMG] and [IMG][IM[IMG]G]",
    "a <b>bold</b> apple",
    "x <!-- no --> y",
    "tea &eacute; coffee",
    "schÃ¶n âœ” cafÃ© voilÃ  le",
    "l’été à l’École, «naïve» 20 °C, Łódź ŠKODA",
    "a cat, 8k, (masterpiece:1.2), best quality; trending on artstation",
    "A photo of a café in São Paulo — golden hour, 35mm, f/1.8",
)
#: What random prompts are made of.
PIECES = (
    *"abcXYZ019 .,;:!?'\"-_+/()[]#@&<%*\n\t",
    *"éÉßΣςжЖ中龍ｗﬁ’“”–…°×½©\u00a0\u3000\u0301\u200d\x1b\x85",
    *("&amp;", "&lt", "&#x41;", "&nbsp;", "&eacute;", "%20", "%C3%A9", ".com", "http://", ".png", "123456", " . "),
    *("[IMG]", "@you", "512x512", "Ã©", "free shipping"),
)
RANDOM = 150


def fixed(text: str) -> bool:
    """Whether ftfy repairs the encoding of a part of a text."""
    return ftfy.fix_text(text) != ftfy.fix_text(text, fix_encoding=False)


def caption(text: str) -> str:
    """PixArt's default."""
    pipeline: Any = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)
    return str(pipeline._text_preprocessing(text, clean_caption=True)[0])


def without_pictures(text: str) -> str:
    """FLUX.2's conversation."""
    return str(format_input([text])[0][-1]["content"][0]["text"])


#: By name: the rules, and the original.
CLEANERS: dict[str, tuple[Any, Cleaning]] = {
    "wan": (prompts.WAN, prompt_clean),
    "caption": (prompts.CAPTION, caption),
    "no_pictures": (prompts.NO_PICTURES, without_pictures),
    "html_unescape": (("html_unescape",), html.unescape),
    "lowercase": (("lowercase",), str.lower),
    "strip": (("strip",), str.strip),
    "url_unquote": (("url_unquote",), unquote_plus),
    "fix_text": (("fix_text",), ftfy.fix_text),
}


def rules() -> dict[str, list[prompts.Rule]]:
    """The rules by name."""
    return {name: list(rules) for name, (rules, _) in CLEANERS.items()}


def texts(name: str) -> Iterator[str]:
    """The prompts for some rules: all entities for the rule that reads them."""
    yield from TEXTS
    if name in ("html_unescape", "fix_text"):
        names = sorted(html.entities.html5)
        for start in range(0, len(names), 24):
            yield " ".join(f"&{name}" for name in names[start : start + 24])
            yield "".join(f"&{name.upper()}" for name in names[start : start + 24])
        for start in range(0, 0x300, 32):
            yield "".join(f"&#{number};" for number in range(start, start + 32))
    generator = random.Random(name)
    for _ in range(RANDOM):
        yield "".join(generator.choices(PIECES, k=generator.randint(1, 24)))


def clean(name: str, text: str) -> dict[str, Any]:
    """One case; what the rules for captions do is watched, because they clean twice."""
    seen: list[bool] = []
    marked: list[bool] = []

    def watched_fix(given: str) -> str:
        seen.append(fixed(given))
        return ftfy.fix_text(given)

    original = pipeline_pixart_alpha.BeautifulSoup

    class WatchedSoup(original):  # type: ignore[misc, valid-type]
        def __init__(self, given: str, **settings: Any) -> None:
            super().__init__(given, **settings)
            marked.append(self.text != given)

    class Watched:
        fix_text = staticmethod(watched_fix)

    if name == "caption":
        pipeline_pixart_alpha.BeautifulSoup, pipeline_pixart_alpha.ftfy = WatchedSoup, Watched
    try:
        cleaned: str | None = CLEANERS[name][1](text)
    finally:
        pipeline_pixart_alpha.BeautifulSoup, pipeline_pixart_alpha.ftfy = original, ftfy
    if name in ("wan", "fix_text"):
        seen.append(fixed(text))
    return {"rules": name, "prompt": text, "cleaned": None if any(marked) else cleaned, "repaired": any(seen)}


def cases() -> list[dict[str, Any]]:
    """All cases."""
    return [clean(name, text) for name in CLEANERS for text in texts(name)]


def main(arguments: list[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=REFERENCE_DIR / "prompts.json")
    out: Path = parser.parse_args(arguments).out
    head = {"made_by": "export/oracle/prompts.py", "ftfy": ftfy.__version__, "rules": rules()}
    write_records(out, head, "cases", cases())


if __name__ == "__main__":
    main()
