"""Check the built site without a browser and without network.

python docs/check_site.py build/docs

Of every page: links to other pages and their anchors lead somewhere, pictures have a text, the
page with its pictures, styles and scripts weighs less than LIMIT, and nothing is loaded from other
hosts.
"""

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LIMIT = 1_500_000
# What a browser loads by itself, and the attribute that says from where.
LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src", "video": "src"}
LINKS = {"stylesheet", "icon", "shortcut icon", "preload", "preconnect", "dns-prefetch"}


class Page(HTMLParser):
    """What a page refers to.

    Attributes:
        anchors: the names that a link may lead to.
        links: where it leads.
        loaded: what a browser loads with it.
        untold: pictures without a text.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: set[str] = set()
        self.untold: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in LINKS:
            self.loaded.add(found["href"])
        if source := found.get(LOADED.get(tag, "")):
            self.loaded.add(source)
        for part in found.get("srcset", "").split(","):
            self.loaded |= set(part.split()[:1])
        # Thumbnails of the gallery have their titles beside them, and so an empty text.
        thumbnail = "_thumb." in found.get("src", "") and "alt" in found
        if tag == "img" and not thumbnail and not found.get("alt", "").strip():
            self.untold.append(found.get("src", ""))


@cache
def read(file: Path) -> Page:
    """The page in this file, read once."""
    return Page(file)


def local(folder: Path, address: str) -> Path:
    """The file that a relative address means."""
    return (folder / unquote(urlsplit(address).path)).resolve()


def problems(file: Path) -> list[str]:
    """What is wrong with a page."""
    page, found = read(file), []
    found += [f"picture without a text: {source}" for source in page.untold]
    weight = file.stat().st_size
    for source in sorted(page.loaded):
        if source.startswith("data:"):
            continue
        if urlsplit(source).netloc:
            found.append(f"is loaded from another host: {source}")
        elif not (target := local(file.parent, source)).is_file():
            found.append(f"is not there: {source}")
        else:
            weight += target.stat().st_size
            if target.suffix == ".css":
                text = target.read_text(encoding="utf-8")
                hosts = re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')]+)", text)
                found += [f"{source} loads {host}" for host in hosts]
    if weight > LIMIT:
        found.append(f"weighs {weight / 1e6:.2f} MB with what it loads, {LIMIT / 1e6} are allowed")
    for link in page.links:
        address, anchor = urldefrag(link)
        if urlsplit(address).scheme or urlsplit(address).netloc:
            continue
        target = local(file.parent, address) if address else file
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            found.append(f"broken link: {link}")
        elif anchor and target.suffix == ".html" and unquote(anchor) not in read(target).anchors:
            found.append(f"broken anchor: {link}")
    return found


def main() -> None:
    """Print what is wrong, and fail if anything is."""
    (folder,) = map(Path, sys.argv[1:])
    pages = sorted(folder.resolve().rglob("*.html"))
    # What is there to be kept, like the report of the benchmarks, is not a page.
    pages = [page for page in pages if "_downloads" not in page.parts]
    if not pages:
        raise SystemExit(f"no pages in {folder}")
    wrong = [f"{page.relative_to(folder.resolve())}: {p}" for page in pages for p in problems(page)]
    for line in wrong:
        print(line)
    print(f"{len(pages)} pages, {len(wrong)} problems")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
