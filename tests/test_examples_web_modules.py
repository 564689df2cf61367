"""The modules of the web example that need no browser, in node, beside what Python makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from javascript import EXAMPLES, node

from sparse_ddpm.sampling.noise import normal, philox4x32

WORD = 2**32


def test_words_equal_ours() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, WORD, size=(200, 6), dtype=np.uint64)
    inputs[0], inputs[1] = 0, WORD - 1
    found = json.loads(
        node(
            'import { philox } from "web:noise.js";'
            f"const inputs = {inputs.tolist()};"
            "const words = inputs.map((six) => philox(six.slice(0, 4), six.slice(4)));"
            "console.log(JSON.stringify(words));"
        )
    )
    for six, words in zip(inputs, found, strict=True):
        c0, c1, c2, c3, k0, k1 = six
        ours = philox4x32((c0, c1, c2, c3), (int(k0), int(k1)))
        assert words == [int(word) for word in ours]


@pytest.mark.parametrize(
    ("seed", "images", "step", "size"),
    [
        (0, list(range(16)), 0, 256),
        (2**64 - 1, [7, 0, 2**32 + 5], 50, 1023),
        (2**32, [3], 1, 1),
        (5, [], 0, 16),
    ],
)
def test_noise_equals_ours(seed: int, images: list[int], step: int, size: int) -> None:
    written = node(
        'import { normal } from "web:noise.js";'
        f"process.stdout.write(Buffer.from(normal({seed}n, {images}, {step}, {size}).buffer));"
    )
    found = np.frombuffer(written, np.float32).reshape(len(images), size)
    # Logarithm, sine and cosine may differ in a double's last bit, and rarely that shows here.
    np.testing.assert_array_almost_equal_nulp(found, normal(seed, images, step, (size,)), 1)


def test_seeds_as_people_type_them() -> None:
    texts = ["7", " 42 ", str(2**64 - 1), str(2**64), "", "-1", "1.5", "0x10", "1e3", "sieben"]
    found = json.loads(
        node(
            'import { parseSeed } from "web:noise.js";'
            f"const seeds = {json.dumps(texts)}.map(parseSeed);"
            "console.log(JSON.stringify(seeds.map((seed) => seed === null ? null : `${seed}`)));"
        )
    )
    assert found == ["7", "42", str(2**64 - 1)] + 7 * [None]


def test_metadata_of_a_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph, model_version=-1, doc_string="x" * 300)
    metadata = {"what": "step", "steps": "20", "empty": "", "naïve": "größer"}
    onnx.helper.set_model_props(model, metadata)
    content = model.SerializeToString()
    (tmp_path / "whole.onnx").write_bytes(content)
    (tmp_path / "part.onnx").write_bytes(content[:-5])
    (tmp_path / "text.onnx").write_bytes(b"<!doctype html>\n<title>404</title>\n")
    found = json.loads(
        node(
            'import { readFileSync } from "node:fs";'
            'import { readMetadata } from "web:metadata.js";'
            "const read = (name) => {"
            "  try {"
            f"    return readMetadata(readFileSync(`{tmp_path}/${{name}}.onnx`));"
            "  } catch ({ message }) { return message; }"
            "};"
            'console.log(JSON.stringify(["whole", "part", "text"].map(read)));'
        )
    )
    assert found == [
        metadata,
        "this is not an ONNX file, or only a part of one",
        "this is not an ONNX file",
    ]


@pytest.mark.parametrize("example", ["web", "node"])
def test_packages_are_pinned_and_name_no_registry(example: str) -> None:
    asked = json.loads((EXAMPLES / example / "package.json").read_text())
    text = (EXAMPLES / example / "package-lock.json").read_text()
    locked = json.loads(text)["packages"]
    for name, version in {**asked["dependencies"], **asked.get("devDependencies", {})}.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert "resolved" not in text
    assert all("integrity" in entry for path, entry in locked.items() if path)
