"""The page's server over HTTP: what it answers, and what it refuses."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import label_sets
import numpy as np
import pytest
from label_sets import Image

import segray
from segray.errors import LabelSetError, UserError
from segray.imaging.drawing import png
from segray.synthetic.dataset import scene_at
from segray.view.serve import Place, View, view


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def ask(page: View, path: str, body: Any = None, **headers: str) -> Answer:
    """An answer, whatever its status. A header X_Y is X-Y."""
    address = page.address.partition("?")[0].rstrip("/") + path
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **sent})
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=60) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label set of four scenes: one as it was, one that is gone, one of another size now, one that is no image."""
    folder = tmp_path_factory.mktemp("view")
    images = dict(label_sets.stickers(4))
    for number, (key, image) in enumerate(list(images.items())):
        pixels = scene_at(0, number).image
        file = folder / f"{number}.png"
        if number == 0:
            file.write_bytes(png(pixels))
        elif number == 2:
            file.write_bytes(png(pixels[:50, :60]))
        elif number == 3:
            file.write_text("no image")
        images[key] = Image(image.size_hw, image.found, uri=str(file))
    label_sets.write(folder / "labels", images)
    return folder / "labels"


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[View]:
    with view(root, judgements=root.parent / "said.jsonl") as served:
        yield served


def test_the_page_and_its_files_come_from_this_server_alone_and_are_small(page: View) -> None:
    html = ask(page, "/").body.decode()
    names = [part.split('"')[0] for part in html.split("/static/")[1:]]
    assert names == ["view.css", "main.js"]
    scripts = [
        ask(page, f"/static/{name}.js") for name in ("main", "dom", "address", "filters", "grid", "image", "rle")
    ]
    assert {script.status for script in scripts} == {200}
    assert sum(len(script.body) for script in scripts) + len(html) < 300_000
    assert not any(b"http://" in script.body or b"innerHTML" in script.body for script in scripts)
    policy = ask(page, "/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy


def test_an_image_has_the_rows_of_the_label_set_and_its_neighbours(page: View, root: Path) -> None:
    state = ask(page, "/api/state").json
    assert (state["root"], state["rows"]) == (
        str(root),
        {"instances": segray.scan(str(root)).count_rows(), "images": 4},
    )
    keys = [row["image_key"] for row in ask(page, "/api/images").json["images"]]
    record = ask(page, f"/api/image?key={keys[1]}").json
    assert (record["place"], record["total"], record["previous"], record["next"]) == (1, 4, keys[0], keys[2])
    rows = segray.open_label_set(root).to_arrow().to_pylist()
    wanted = {row["instance"]: row["rle"] for row in rows if row["image_key"] == keys[1]}
    assert {row["instance"]: row["rle"] for row in record["instances"]} == wanted


def test_a_picture_is_the_upright_image_and_a_thumbnail_shows_its_masks(page: View) -> None:
    scene = scene_at(0, 0)
    picture = cv2.imdecode(np.frombuffer(ask(page, "/picture/0.jpg").body, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == scene.image.shape
    assert np.abs(picture.astype(int) - scene.image).mean() < 4
    plain, drawn = (
        cv2.imdecode(np.frombuffer(ask(page, f"/thumbnail/0.jpg?score={score}").body, np.uint8), cv2.IMREAD_COLOR_RGB)
        for score in ("2..", "0..")
    )
    assert max(plain.shape) == 320
    mask = np.any([scene.mask(number) for number in range(len(scene.category_ids))], axis=0).astype(np.uint8)
    small = cv2.resize(mask, plain.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    change = np.abs(drawn.astype(int) - plain).sum(axis=2)
    assert change[small == 1].mean() > 5 * change[cv2.dilate(small, np.ones((15, 15))) == 0].mean() + 5


@pytest.mark.parametrize(
    ("number", "status", "what"),
    [
        (1, 404, "the image is gone"), (2, 422, "the image has changed since it was labelled"), (3, 422, ""),
        (9, 400, "no such image"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_shown_is_told(page: View, number: int, status: int, what: str) -> None:
    for path in (f"/thumbnail/{number}.jpg", f"/picture/{number}.jpg"):
        answer = ask(page, path)
        assert answer.status == status
        assert what in answer.json["error"]["what"]


def test_a_wrong_filter_is_told(page: View) -> None:
    for path in (
        "/api/images?score=x",
        "/api/facets?where=score%20%3E",
        "/api/images?offset=-1",
        "/api/image?key=none",
    ):
        answer = ask(page, path)
        assert answer.status == 400
        assert answer.json["error"]["what"]


def test_judgements_are_saved_and_shown(page: View, root: Path) -> None:
    key = ask(page, "/api/images").json["images"][0]["image_key"]
    saved = ask(page, "/api/judge", {"image_key": key, "instance": 0, "verdict": "wrong"})
    assert saved.status == 200
    assert ask(page, f"/api/image?key={key}").json["judgements"][0]["verdict"] == "wrong"
    assert ask(page, "/api/images").json["images"][0]["judgements"] == 1
    assert json.loads((root.parent / "said.jsonl").read_text())["image_key"] == key
    for wrong in (
        {"image_key": "none", "instance": 0, "verdict": "wrong"},
        [],
        {"image_key": key},
        b"{",
        b"x" * 20_000,
    ):
        assert ask(page, "/api/judge", wrong).status == 400
    assert ask(page, "/api/judge", b"{}", Content_Type="text/plain").status == 400
    assert len((root.parent / "said.jsonl").read_text().splitlines()) == 1


def test_other_sites_cannot_ask(page: View) -> None:
    assert ask(page, "/api/state", Host="attacker.example").status == 400
    record = {"image_key": "a", "instance": 0, "verdict": "wrong"}
    assert ask(page, "/api/judge", record, Origin="http://attacker.example").status == 403
    assert ask(page, "/api/state").headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_no_path_reaches_the_file_system(page: View) -> None:
    for path in (
        "/static/../serve.py",
        "/static/%2e%2e/serve.py",
        "/etc/passwd",
        "/picture/..%2f..%2fetc.jpg",
        "/picture/-1.jpg",
    ):
        assert ask(page, path).status == 404


def test_beyond_this_machine_the_page_needs_its_token(root: Path, tmp_path: Path) -> None:
    with view(root, place=Place("0.0.0.0"), judgements=tmp_path / "said.jsonl") as served:
        local = View(served._server, served._thread, served.address, served.root)
        port = served.address.rpartition(":")[2].partition("/")[0]
        token = served.address.partition("?token=")[2]
        local.address = f"http://127.0.0.1:{port}/"
        assert len(token) >= 32
        for path in ("/", "/api/state", "/?token=", f"/?token={token[:-1]}x", "/static/main.js"):
            assert ask(local, path).status == 401
        first = ask(local, f"/?token={token}&order=score")
        assert (first.status, first.headers["location"]) == (303, "/?order=score")
        cookie = first.headers["set-cookie"].partition(";")[0]
        assert ask(local, "/api/state", Cookie=cookie).status == 200


def test_what_cannot_be_served_is_told(root: Path, page: View, tmp_path: Path) -> None:
    port = int(page.address.rpartition(":")[2].strip("/"))
    with pytest.raises(UserError, match="cannot be served here") as caught:
        view(root, place=Place(port=port), judgements=tmp_path / "said.jsonl")
    assert "--port" in caught.value.hint
    with pytest.raises(LabelSetError, match="no label set here"):
        view(tmp_path)


def test_a_label_set_gives_its_page(root: Path, tmp_path: Path) -> None:
    served = segray.open_label_set(root).view(judgements=tmp_path / "said.jsonl")
    try:
        assert ask(served, "/api/state").json["version"] == 1
        assert served.address in served._repr_html_()
    finally:
        served.stop()
    with pytest.raises(urllib.error.URLError):
        ask(served, "/api/state")
