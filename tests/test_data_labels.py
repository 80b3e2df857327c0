"""Label files by time and class: each format with what is right, what is wrong and where, and classes matched by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets import SPECS
from evburst.data.datasets.labels import LABEL_FILES, ClassMatcher, LabelFile, parse_classes, with_own_classes
from evburst.data.datasets.layouts import ONE_MPX_CLASSES
from evburst.data.errors import ConfigError, LabelError

STREET = SPECS["street"]
ROWS = [(1000, "car", [1, 2, 31, 42]), (1000, "Person", [0, 0, 5, 5]), (2000, "car", [-5, 3, 10, 10])]
"""(t µs, class, x0 y0 x1 y1)."""

Rows = list[tuple[int, str, list[int]]]


def write_prophesee(path: Path, rows: Rows) -> None:
    boxes = np.zeros(len(rows), BBOX_DTYPE)
    for box, (t, name, (x0, y0, x1, y1)) in zip(boxes, rows, strict=True):
        box["t"], box["x"], box["y"], box["w"], box["h"] = t, x0, y0, x1 - x0, y1 - y0
        box["class_id"] = 0 if name == "car" else 1
    np.save(path, boxes)


def write_csv(path: Path, rows: Rows) -> None:
    lines = [f"{t}, {name}, {x0}, {y0}, {x1}, {y1}" for t, name, (x0, y0, x1, y1) in rows]
    path.write_text("t_us, class, x0, y0, x1, y1\n" + "\n".join(lines) + "\n")


def write_coco(path: Path, rows: Rows) -> None:
    times = sorted({t for t, *_ in rows})
    coco = {
        "images": [{"id": t, "t_us": t} for t in times],
        "categories": [{"id": name, "name": name} for name in sorted({name for _, name, _ in rows})],
        "annotations": [
            {"image_id": t, "category_id": name, "bbox": [x0, y0, x1 - x0, y1 - y0]} for t, name, (x0, y0, x1, y1) in rows
        ],
    }
    path.write_text(json.dumps(coco))


def write_voc(path: Path, rows: Rows) -> None:
    """The boxes of the last time only."""
    objects = [
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for t, name, (x0, y0, x1, y1) in rows
        if t == rows[-1][0]
    ]
    path.write_text(f"<annotation>{''.join(objects)}</annotation>")


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "_bbox.npy": write_prophesee, "_bbox.csv": write_csv, ".json": write_coco, ".xml": write_voc,
}  # fmt: skip


def by_time(labels: LabelFile) -> list[tuple[int | None, list[str | int], list[list[float]]]]:
    return [(instant.t_us, list(instant.names), instant.boxes_xyxy.tolist()) for instant in labels.instants]


@pytest.mark.parametrize("ending", list(LABEL_FILES))
def test_every_format_says_the_same(tmp_path: Path, ending: str) -> None:
    """The contract of a label file's reader."""
    WRITERS[ending](tmp_path / f"a{ending}", ROWS[::-1] if ending == "_bbox.npy" else ROWS)
    found = by_time(LABEL_FILES[ending](tmp_path / f"a{ending}"))
    names: dict[str, str | int] = {"car": 0, "Person": 1} if ending == "_bbox.npy" else {"car": "car", "Person": "Person"}
    first = (1000, [names["car"], names["Person"]], [[1, 2, 31, 42], [0, 0, 5, 5]])
    second = (None if ending == ".xml" else 2000, [names["car"]], [[-5, 3, 10, 10]])
    if ending == "_bbox.npy":
        first = (1000, first[1][::-1], first[2][::-1])
    assert found == ([second] if ending == ".xml" else [first, second])
    with pytest.raises(LabelError, match="a"):
        LABEL_FILES[ending](tmp_path / f"missing{ending}")
    (tmp_path / f"b{ending}").write_bytes(b"\xff\xfe\x00nothing")
    with pytest.raises(LabelError, match="b"):
        LABEL_FILES[ending](tmp_path / f"b{ending}")


def test_boxes_without_rows_are_no_labels(tmp_path: Path) -> None:
    for ending in ("_bbox.npy", "_bbox.csv"):
        WRITERS[ending](tmp_path / f"a{ending}", [])
        assert LABEL_FILES[ending](tmp_path / f"a{ending}").instants == ()


CSV = [
    ("t_us,class,x,y,w,h\n10,car,1,2,3,4\n", ""),
    ("\ufeffT,Class,X,Y,W,H\n10,7,1,2,3,4\n", ""),
    ("t_us,class,x,y\n", "columns t_us, class, x, y; expected t_us, class and"),
    ("t_us,class,x,y,w,h\n10,car,1,2,3,4\n11,car,1,nan,3,4\n", "line 3: the box is ['1', 'nan', '3', '4']: not finite"),
    ("t_us,class,x,y,w,h\n10,car,1,inf,3,4\n", "not finite"),
    ("t_us,class,x,y,w,h\n10,car,1,2,-3,4\n", "line 2: the box is -3 px wide and 4 px high: negative"),
    ("t_us,class,x0,y0,x1,y1\n10,car,9,2,3,4\n", "the box is -6 px wide"),
    ("t_us,class,x,y,w,h\n-10,car,1,2,3,4\n", "line 2: the time is '-10'"),
    ("t_us,class,x,y,w,h\n1.5,car,1,2,3,4\n", "line 2: the time is '1.5'"),
    ("t_us,class,x,y,w,h\nnan,car,1,2,3,4\n", "line 2: the time is 'nan'"),
    ("t_us,class,x,y,w,h\ninf,car,1,2,3,4\n", "line 2: the time is 'inf'"),
    ("t_us,class,x,y,w,h\n10,car,1\n", "line 2: the box is ['1', None, None, None]"),
]


@pytest.mark.parametrize(("text", "message"), CSV)
def test_csv(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a_bbox.csv").write_text(text)
    if not message:
        assert by_time(LABEL_FILES["_bbox.csv"](tmp_path / "a_bbox.csv"))[0][2] == [[1, 2, 4, 6]]
        return
    with pytest.raises(LabelError) as error:
        LABEL_FILES["_bbox.csv"](tmp_path / "a_bbox.csv")
    assert message in str(error.value)


def annotation(**changes: object) -> dict[str, object]:
    return {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], **changes}


def coco(**changes: object) -> dict[str, object]:
    pictures, categories = [{"id": 1, "t_us": 10}], [{"id": 3, "name": "car"}]
    return {"images": pictures, "categories": categories, "annotations": [annotation()], **changes}


COCO = [
    ({"annotations": [annotation(category_id=9)]}, "annotation 0: category 9 is not in the file (known: 3)"),
    ({"annotations": [annotation(image_id=5)]}, "annotation 0: image 5 is not in the file (known: 1)"),
    ({"annotations": [annotation(category_id=[3])]}, "not a COCO file of boxes"),
    ({"categories": [{"id": {}, "name": "car"}]}, "not a COCO file of boxes"),
    ({"categories": None}, "not a COCO file of boxes"),
    ({"annotations": [annotation(bbox=[1, 2, float("nan"), 4])]}, "annotation 0: the box is [1, 2, nan, 4]"),
    ({"annotations": [annotation(bbox=[1, 2, -3, 4])]}, "annotation 0: the box is -3 px wide"),
    ({"annotations": [annotation(bbox=None)]}, "annotation 0: the box is None"),
    ({"annotations": [annotation(bbox=[1, 2, 10**400, 4])]}, "expected four numbers"),
    ({"images": [{"id": 1, "t_us": 10}, {"id": 1, "t_us": 20}]}, "two images have the id 1; give each its own"),
    ({"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "bus"}]}, "two categories have the id 3"),
    ({"images": [{"id": 1, "t_us": -4}]}, "image 1: the time is -4"),
    ({"images": [{"id": 1, "t_us": float("inf")}]}, "image 1: the time is inf"),
    ({"images": [{"id": 1, "t_us": "soon"}]}, "image 1: the time is 'soon'"),
    ({"images": [{"id": k, "t_us": k, "width": k, "height": 9} for k in (1, 2)]}, "pictures of several sizes"),
    ({"images": [{"id": k, "file_name": f"{k}.png"} for k in (1, 2, 3)]}, "3 pictures without a time, as '1.png': give each"),
    ({"images": [{"id": k, "t_us": None} for k in (1, 2)]}, "2 pictures without a time"),
    ({"images": [{"id": 1, "width": 9.5, "height": 9}]}, "the picture's size is 9.5 x 9"),
    ({"images": [{"id": 1, "width": -9, "height": 9}]}, "the picture's size is -9 x 9"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), COCO)
def test_coco_files_that_are_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco(**changes)))
    with pytest.raises(LabelError) as error:
        LABEL_FILES[".json"](tmp_path / "a.json")
    assert message in str(error.value)


def test_coco_pictures_at_the_same_time_are_one_instant(tmp_path: Path) -> None:
    pictures = [{"id": k, "t_us": t} for k, t in enumerate([20, None, 10, 20])]
    found = [annotation(image_id=k, bbox=[k, 0, 3, 4]) for k in (0, 1, 3)]
    (tmp_path / "a.json").write_text(json.dumps(coco(images=pictures, annotations=found)))
    first, second = [0, 0, 3, 4], [3, 0, 6, 4]
    instants = by_time(LABEL_FILES[".json"](tmp_path / "a.json"))
    assert [(t, boxes) for t, _, boxes in instants] == [(10, []), (20, [first, second]), (None, [[1, 0, 4, 4]])]


def test_coco_pictures_are_of_the_time_in_their_name(tmp_path: Path) -> None:
    """As `evburst events frames` names them, also below a folder and behind what a labelling program writes before it."""
    names = ["4f-a_000000500000us.png", "p/a_000001000000us.PNG", "a_000000500000us.png", "a_000002000000us.png"]
    names += ["a_000001000000us_png.rf.1abc.jpg", "a_100us_exposed.png"]
    pictures = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    pictures[3]["t_us"] = 70
    found = [{"image_id": k, "category_id": 3, "bbox": [k, 1, 2, 3]} for k in range(6)]
    (tmp_path / "a.json").write_text(json.dumps(coco(images=pictures, annotations=found)))
    instants = LABEL_FILES[".json"](tmp_path / "a.json").instants
    assert [(instant.t_us, instant.boxes_xyxy[:, 0].tolist()) for instant in instants] == [
        (70, [3]), (500_000, [0, 2]), (1_000_000, [1, 4]), (None, [5]),
    ]  # fmt: skip


def test_coco_pictures_of_other_recordings_are_no_labels_of_this_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program may export the pictures of all recordings to one file, whose times are equal where clocks start at 0."""

    def read(name: str, *files: str) -> list[tuple[int | None, list[float]]]:
        pictures = [{"id": k, "file_name": file} for k, file in enumerate(files)]
        found = [{"image_id": k, "category_id": 3, "bbox": [k, 1, 2, 3]} for k in range(len(files))]
        (tmp_path / f"{name}.json").write_text(json.dumps(coco(images=pictures, annotations=found)))
        instants = LABEL_FILES[".json"](tmp_path / f"{name}.json").instants
        return [(instant.t_us, instant.boxes_xyxy[:, 0].tolist()) for instant in instants]

    a, b, c = (f"{name}_000000500000us.png" for name in ("rec_a", "rec_b", "my_rec_a"))
    with caplog.at_level("INFO"):
        assert read("rec_a", b, a, c) == [(500_000, [1])]
        assert "2 pictures of other recordings left out, such as rec_b_000000500000us.png" in caplog.text
        assert read("rec_b", f"train/{b}", f"0a1f-{b}", a) == [(500_000, [0, 1])]
        assert "labels of another recording" not in caplog.text
        assert read("rec_d", a, "rec_a_000000600000us.png") == [(500_000, [0]), (600_000, [1])]
        assert "no picture is of 'rec_d' by its name, as 'rec_a_000000500000us.png'" in caplog.text
    with pytest.raises(LabelError, match=r"pictures of several recordings, such as 'rec_a_0.*, and none of 'rec_e'"):
        read("rec_e", a, b)


def test_coco_and_voc_say_the_sensors_size(tmp_path: Path) -> None:
    for width, height, size in ((346, 260, (346, 260)), (346.0, 260, (346, 260)), (0, 0, None), ("", " ", None)):
        sides = {} if width == "" else {"width": width, "height": height}
        (tmp_path / "a.json").write_text(json.dumps(coco(images=[{"id": 1, **sides}])))
        assert LABEL_FILES[".json"](tmp_path / "a.json").sensor_size == size
        text = f"<annotation><size><width>{width}</width><height>{height}</height></size></annotation>"
        (tmp_path / "a.xml").write_text(text)
        assert LABEL_FILES[".xml"](tmp_path / "a.xml").sensor_size == size
    (tmp_path / "a.xml").write_text("<annotation><size><width>346</width></size></annotation>")
    with pytest.raises(LabelError, match="the picture's size is 346 x 0"):
        LABEL_FILES[".xml"](tmp_path / "a.xml")


@pytest.mark.parametrize("corner", ["", "nan", "-inf", "x"])
def test_voc_corners_that_are_none(tmp_path: Path, corner: str) -> None:
    box = f"<bndbox><xmin>1</xmin><ymin>{corner}</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>car</name>{box}</object></annotation>")
    with pytest.raises(LabelError, match="object 0: the box is"):
        LABEL_FILES[".xml"](tmp_path / "a.xml")


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("name", "index"),
    [("car", 0), ("Car", 0), (" CAR ", 0), ("vehicle", 0), ("Person", 1), ("pedestrian", 1), (0, 0), (1, 1),
     ("bus", -1), ("cars", -1), ("", -1), (2, -1), (7, -1), ("1", -1)],
)  # fmt: skip
def test_names_are_matched_whatever_their_case(name: str | int, index: int) -> None:
    matcher = ClassMatcher(STREET)
    assert matcher.indices([name]).tolist() == [index]
    assert (matcher.matched.total(), matcher.unmatched.total()) == (index >= 0, index < 0)


def test_one_megapixel_pedestrians_are_no_cars() -> None:
    matcher = ClassMatcher(STREET, None, ONE_MPX_CLASSES)
    assert matcher.indices(list(range(8))).tolist() == [1, -1, 0, -1, -1, -1, -1, -1]
    assert dict(matcher.unmatched) == dict.fromkeys(
        ["two wheeler", "truck", "bus", "traffic sign", "traffic light", "class id 7"], 1
    )
    spec = SPECS["1mpx"]
    assert ClassMatcher(spec, None, ONE_MPX_CLASSES).indices([0, 1, 2, 3]).tolist() == [0, 1, 2, -1]
    assert ClassMatcher(spec).indices(["Two-Wheeler", "two_wheeler"]).tolist() == [1, 1]


def test_a_mapping_goes_before_names_and_ids() -> None:
    matcher = ClassMatcher(STREET, parse_classes("Truck=car, 3=pedestrian ,bus=ignore,car=ignore"))
    assert matcher.indices(["truck", "TRUCK", 3, "3", "bus", "car", 0, "pedestrian"]).tolist() == [0, 0, 1, 1, -1, -1, -1, 1]
    assert not matcher.unmatched


def test_labels_without_a_match_are_reported(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    matcher = ClassMatcher(STREET)
    matcher.indices(["car", "tram", "tram", "dog"])
    matcher.log_unmatched(tmp_path)
    (record,) = caplog.records
    assert record.name.startswith("evburst.")
    assert record.levelname == "WARNING"
    assert "boxes of other classes are ignored: 'tram' (2), 'dog' (1); the classes are car, pedestrian;" in record.message
    nothing = ClassMatcher(STREET)
    nothing.indices(["tram"])
    with pytest.raises(LabelError, match=r"no labelled box is of a known class: 'tram' \(1\); the classes are car, pedestrian"):
        nothing.log_unmatched(tmp_path)


@pytest.mark.parametrize("text", ["car", "=car", "Car=", "a=b,c"])
def test_mappings_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="write them as NAME=CLASS"):
        parse_classes(text)


def test_a_mapping_to_no_class_names_the_classes() -> None:
    with pytest.raises(ConfigError, match=r"'lorry' is not a class of street \(its classes: car, pedestrian; or ignore\)"):
        ClassMatcher(STREET, {"Truck": "lorry"})


def test_a_class_of_thousands_of_digits_is_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Python converts at most 4300 digits to a number."""
    (tmp_path / "a_bbox.csv").write_text(f"t_us,class,x,y,w,h\n10,{'9' * 5000},1,2,3,4\n11,car,1,2,3,4\n")
    found = LABEL_FILES["_bbox.csv"](tmp_path / "a_bbox.csv")
    matcher = ClassMatcher(SPECS["street"])
    for instant in found.instants:
        matcher.indices(instant.names)
    matcher.log_unmatched(tmp_path)
    assert f"boxes of other classes are ignored: '{'9' * 40}' (1)" in caplog.text


def test_labels_in_utf_16_are_named_in_few_words(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": []}' * 1000, encoding="utf-16")
    with pytest.raises(LabelError, match=r"not a COCO file of boxes .*'utf-8' codec") as caught:
        LABEL_FILES[".json"](tmp_path / "a.json")
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_name_is_mapped_once() -> None:
    assert parse_classes("Car=car, Car=car") == {"Car": "car"}
    with pytest.raises(ConfigError, match="Car is mapped to two classes"):
        parse_classes("Car=car,Car=pedestrian")


def test_letters_may_be_composed_or_not() -> None:
    """As macOS writes them in names of files."""
    spec = with_own_classes(SPECS["street"], ("K\u00e4fer",))
    assert ClassMatcher(spec).indices(["Ka\u0308fer", "Kafer"]).tolist() == [0, -1]


def test_a_number_that_is_the_name_of_a_class_means_that_class() -> None:
    numbers = ClassMatcher(with_own_classes(SPECS["street"], ("2", "1", "cup")))
    assert numbers.indices([1, 2, 0, "1", "cup"]).tolist() == [1, 0, 0, 1, 2]
    assert ClassMatcher(with_own_classes(SPECS["street"], ("cup", "mug"))).indices([1, 0, 2]).tolist() == [1, 0, -1]


HEADER = io.BytesIO()
"""A NumPy header of more boxes than fit into any memory, without boxes."""
HEADER.write(np.lib.format.magic(1, 0))
np.lib.format.write_array_header_1_0(HEADER, {"descr": BBOX_DTYPE.descr, "fortran_order": False, "shape": (10**14,)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a_bbox.npy", b"PK\3\4abc", "not a NumPy box file"),
        ("a_bbox.npy", HEADER.getvalue(), "not a NumPy box file"),
        ("a.xml", b'<?xml version="1.0" encoding="foo"?><annotation/>', "not a Pascal VOC label"),
    ],
)
def test_damaged_files_are_errors_of_labels(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LabelError) as error:
        LABEL_FILES[name.removeprefix("a")](path)
    assert message in str(error.value)
