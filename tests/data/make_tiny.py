#!/usr/bin/env python3
"""Writes tiny.safetensors: random weights in the layouts of PyTorch, inputs, and the outputs that
numpy computes from them in double precision. Needs numpy and safetensors.

    python3 make_tiny.py tiny.safetensors
"""
import math
import sys

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, LENGTH, HIDDEN = 8, 2, 5, 12
random = np.random.default_rng(2021)
tensors = {}


def weight(name, *shape, scale=0.5):
    tensors[name] = (scale * random.standard_normal(shape)).astype(np.float32)
    return tensors[name].astype(np.float64)


def linear(x, name, out):
    return x @ weight(name + ".weight", out, x.shape[-1]).T + weight(name + ".bias", out)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x):
    return x.reshape(*x.shape[:-1], HEADS, -1).swapaxes(-2, -3)


def attend(q, k, v):
    q, k, v = heads(q), heads(k), heads(v)
    out = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v
    return out.swapaxes(-2, -3).reshape(*q.shape[:-3], LENGTH, -1)


def stacked_attention(x, prefix):
    """nn.MultiheadAttention with one matrix for queries, keys and values."""
    rows = weight(prefix + "in_proj_weight", 3 * WIDTH, WIDTH)
    bias = weight(prefix + "in_proj_bias", 3 * WIDTH)
    q, k, v = np.split(x @ rows.T + bias, 3, axis=-1)
    return linear(attend(q, k, v), prefix + "out_proj", WIDTH)


def separate_attention(x, key, value, prefix):
    """nn.MultiheadAttention with kdim and vdim, without biases."""
    q = x @ weight(prefix + "q_proj_weight", WIDTH, WIDTH).T
    k = key @ weight(prefix + "k_proj_weight", WIDTH, key.shape[-1]).T
    v = value @ weight(prefix + "v_proj_weight", WIDTH, value.shape[-1]).T
    return attend(q, k, v) @ weight(prefix + "out_proj.weight", WIDTH, WIDTH).T


def layer_norm(x, name, eps=1e-5):
    mean = x.mean(-1, keepdims=True)
    scale = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)
    return (x - mean) / scale * weight(name + ".weight", x.shape[-1]) + weight(name + ".bias", x.shape[-1])


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mlp(x, name):
    return linear(gelu(linear(x, name + ".up", HIDDEN)), name + ".down", WIDTH)


def as_float(array):
    return array.astype(np.float32)


x = weight("x", 2, LENGTH, WIDTH, scale=1)
key, value = weight("key", 2, LENGTH, 3, scale=1), weight("value", 2, LENGTH, 6, scale=1)
tensors["stacked.output"] = as_float(stacked_attention(x, "stacked."))
tensors["separate.output"] = as_float(separate_attention(x, key, value, "separate."))
post = layer_norm(x + stacked_attention(x, "post.attention."), "post.attention_norm")
tensors["post.output"] = as_float(layer_norm(post + mlp(post, "post.mlp"), "post.mlp_norm"))
pre = x + stacked_attention(layer_norm(x, "pre.attention_norm"), "pre.attention.")
tensors["pre.output"] = as_float(pre + mlp(layer_norm(pre, "pre.mlp_norm"), "pre.mlp"))

ramp = np.arange(6).reshape(2, 3)
for kind in ("float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
    tensors["type." + kind] = (ramp if kind.startswith("u") else ramp - 2).astype(kind)
tensors["type.bool"] = ramp % 2 == 0
tensors["scalar"] = np.array(0.5, np.float32)
tensors["empty"] = np.zeros((0, 4), np.float32)

save_file(tensors, sys.argv[1], metadata={"format": "np", "made by": "make_tiny.py"})
