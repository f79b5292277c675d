#!/usr/bin/env python3
"""Tokenizes sentences.txt with the package tokenizers, by the vocabularies that examples/models.sh
converts and by vocabularies cut down to what these sentences need. Needs tokenizers.

    python3 make_sentences.py <folder of the models> <folder of sentences.txt>
"""
import sys

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

source, target = sys.argv[1:]


def read_lines(path):
    with open(path, encoding="utf-8", newline="\n") as file:
        return file.read().split("\n")[:-1]


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_byte_pair(path):
    lines, lists = read_lines(path), []
    for _ in range(3):
        count = int(lines[0].split(" ")[1])
        lists.append(lines[1 : 1 + count])
        lines = lines[1 + count :]
    return lists


def write_byte_pair(path, *lists):
    names = ("tokens", "merges", "special")
    write_lines(path, [line for name, lines in zip(names, lists) for line in (f"{name} {len(lines)}", *lines)])


def word_piece(tokens):
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, tokens.index(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def byte_pair(tokens, merges, special):
    vocabulary = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def tokenize(tokenizer, name):
    encodings = [tokenizer.encode(sentence) for sentence in sentences]
    write_lines(f"{target}/{name}", (" ".join(map(str, encoding.ids)) for encoding in encodings))
    return {token for encoding in encodings for token in encoding.tokens}


sentences = read_lines(f"{target}/sentences.txt")

tokens = read_lines(f"{source}/sentences.txt")
used = tokenize(word_piece(tokens), "sentences.word_piece") | {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
cut = [token for token in tokens if token in used]
write_lines(f"{target}/word_piece.txt", cut)
tokenize(word_piece(cut), "word_piece.ids")

# A token is made by one merge at least; those that make its halves are needed too.
tokens, merges, special = read_byte_pair(f"{source}/language.txt")
used = tokenize(byte_pair(tokens, merges, special), "sentences.byte_pair") | set(special)
made = {}
for merge in merges:
    made.setdefault(merge.replace(" ", ""), []).append(merge)
waiting = list(used)
while waiting:
    for merge in made.get(waiting.pop(), ()):
        waiting += [half for half in merge.split(" ") if half not in used]
        used |= set(merge.split(" "))
used |= {token for token in tokens if len(token) == 1}
kept = [merge for merge in merges if merge.replace(" ", "") in used]
cut = [token for token in tokens if token in used]
write_byte_pair(f"{target}/byte_pair.txt", cut, kept, special)
tokenize(byte_pair(cut, kept, special), "byte_pair.ids")
