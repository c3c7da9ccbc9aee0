"""Objects and class masks as COCO JSON and GeoJSON.

COCO is in pixels of the image. GeoJSON has map coordinates where the image has a place on the map, and else
pixels, x to the right and y down; its member `coordinates` says which.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..readers.georeference import Georeference
from .detect_tiles import ObjectMask, TiledDetection, object_areas
from .mask_files import write_text
from .polygons import Polygon, signed_area, trace_polygons
from .segment_tiles import TiledSegmentation


# COCO's run lengths count pixels of the whole image in 32 bits.
MAX_RUN_PIXELS = 2**32


def coco_annotations(result: TiledDetection, file_name: str, image_id: int = 1) -> dict[str, Any]:
    """Objects as a COCO data set of one image, which pycocotools reads; `annotations` have `score` as well.

    Masks are run lengths; polygons of images that are too large for them, of 2^32 pixels or more.

    Args:
        file_name: of the image.
        image_id: number of the image, and of its objects from this times a million on.
    """
    height, width = result.image_size
    annotations = []
    for index, (box, score, label, area) in enumerate(
        zip(
            result.boxes.tolist(),
            result.scores.tolist(),
            result.labels.tolist(),
            object_areas(result),
            strict=True,
        )
    ):
        left, top, right, bottom = box
        annotation = {
            "id": image_id * 1_000_000 + index,
            "image_id": image_id,
            "category_id": label,
            "bbox": [left, top, right - left, bottom - top],
            "area": area,
            "score": score,
            "iscrowd": 0,
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        }
        if result.masks is not None:
            annotation["segmentation"] = coco_segmentation(result.masks[index], height, width)
        annotations.append(annotation)
    names = {label: result.name_of(label) for label in {*result.id2label, *result.labels.tolist()}}
    return {
        "info": {"tiles": result.num_tiles, "computed_tiles": result.num_computed},
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": label, "name": names[label]} for label in sorted(names)],
        "annotations": annotations,
    }


def coco_segmentation(mask: ObjectMask, height: int, width: int) -> dict[str, Any] | list[list[float]]:
    """The run lengths of a mask in its image, down each column from the left; or polygons."""
    if height * width >= MAX_RUN_PIXELS:
        return [polygon.outer.ravel().tolist() for polygon in mask_polygons(mask)]
    return {"counts": _run_lengths(mask, height, width), "size": [height, width]}


def _run_lengths(mask: ObjectMask, height: int, width: int) -> list[int]:
    pixels = mask.pixels.T  # columns
    edges = np.diff(np.pad(pixels, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    columns, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    offsets = (columns + mask.left) * height + mask.top
    first, last = offsets + starts, offsets + stops
    if len(first) > 1:
        # Runs that go on from the foot of a column to the head of the next are one.
        joined = first[1:] == last[:-1]
        first, last = first[np.append(True, ~joined)], last[np.append(~joined, True)]
    places = np.stack((first, last), axis=1).ravel()
    return np.diff(np.concatenate(([0], places, [height * width]))).tolist()


def mask_polygons(mask: ObjectMask, tolerance: float = 0.0) -> list[Polygon]:
    """The outlines of a mask, in pixels of its image."""
    offset = np.array([mask.left, mask.top], np.float64)
    return [
        Polygon(polygon.outer + offset, [hole + offset for hole in polygon.holes])
        for polygon in trace_polygons([mask.pixels], mask.shape[1], tolerance)
    ]


def detection_features(
    result: TiledDetection, tolerance: float = 1.0, georeference: Georeference | None = None
) -> dict[str, Any]:
    """Objects as a GeoJSON feature collection; properties are `label`, `class`, `score` and the box in
    pixels.

    Args:
        tolerance: most pixels that the outlines of masks are simplified by; 0 keeps the edges of pixels.
        georeference: instead of the image's own.
    """
    place = georeference or result.georeference
    features = []
    for index, (box, score, label) in enumerate(
        zip(result.boxes.double().numpy(), result.scores.tolist(), result.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        if result.masks is None:
            polygons = [Polygon(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))]
        else:
            polygons = mask_polygons(result.masks[index], tolerance)
        properties = {
            "label": label,
            "class": result.name_of(label),
            "score": score,
            "box": box.tolist(),
        }
        features.append(_feature(polygons, properties, place))
    return _collection(features, place, tolerance if result.masks is not None else 0.0)


def segmentation_features(
    result: TiledSegmentation,
    tolerance: float = 1.0,
    min_area: float = 1.0,
    georeference: Georeference | None = None,
) -> dict[str, Any]:
    """The areas of each class but the background as a GeoJSON feature collection; properties are `label`,
    `class` and `pixels`, before outlines are simplified.

    Args:
        tolerance: most pixels that outlines are simplified by; 0 keeps the edges of pixels.
        min_area: pixels of the smallest area that counts.
        georeference: instead of the image's own.
    """
    place = georeference or result.georeference
    features = []
    for value in result.counts.nonzero()[0].tolist():
        if value == result.background:
            continue
        bands = (band == value for _, band in result.bands())
        for polygon in trace_polygons(bands, result.image_size[1], 0.0):
            pixels = polygon.area
            if pixels < min_area:
                continue
            properties = {"label": value, "class": result.name_of(value), "pixels": pixels}
            features.append(_feature([_simplified(polygon, tolerance)], properties, place))
    return _collection(features, place, tolerance)


def _simplified(polygon: Polygon, tolerance: float) -> Polygon:
    from .polygons import simplify

    if not tolerance:
        return polygon
    return Polygon(simplify(polygon.outer, tolerance), [simplify(hole, tolerance) for hole in polygon.holes])


def _feature(
    polygons: list[Polygon], properties: dict[str, Any], place: Georeference | None
) -> dict[str, Any]:
    rings = [
        [_ring(polygon.outer, place, True), *(_ring(hole, place, False) for hole in polygon.holes)]
        for polygon in polygons
    ]
    geometry = (
        {"type": "Polygon", "coordinates": rings[0]}
        if len(rings) == 1
        else {"type": "MultiPolygon", "coordinates": rings}
    )
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _ring(points: np.ndarray, place: Georeference | None, is_outer: bool) -> list[list[float]]:
    """A closed ring, the outer one counterclockwise and holes clockwise (RFC 7946, 3.1.6)."""
    points = points if place is None else place.to_map(points)
    if (signed_area(points) > 0) != is_outer:
        points = points[::-1]
    return [*points.tolist(), points[0].tolist()]


def _collection(
    features: list[dict[str, Any]], place: Georeference | None, tolerance: float
) -> dict[str, Any]:
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        "coordinates": "pixels" if place is None else "map",
        "simplified_by_pixels": tolerance,
        "features": features,
    }
    if place is not None and place.crs is not None:
        # Of GeoJSON 2008; readers take what has no such member for longitudes and latitudes.
        authority, _, code = place.crs.partition(":")
        name = f"urn:ogc:def:crs:{authority}::{code}"
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """A JSON file that is there whole or not at all; a collection has a feature on each line."""
    write_text(Path(path), "".join(_lines(content)))


def _lines(content: dict[str, Any]) -> Iterator[str]:
    """Members, the last one a list with an entry on each line."""
    members = list(content.items())
    yield "{"
    for index, (name, value) in enumerate(members):
        yield f"{', ' if index else ''}{json.dumps(name)}: "
        if isinstance(value, list) and name in ("features", "annotations"):
            yield "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]"
        else:
            yield json.dumps(value)
    yield "}\n"
