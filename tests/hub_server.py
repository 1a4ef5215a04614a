"""A model and data hub on the loopback address: the real one's protocol and layout, with tiny content.

It knows its repositories at their pinned commits only: a client that asks for whatever ``main`` is now gets no
answer. `build` writes the content, `Hub` serves it and keeps every request.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import torch
import yaml
from datasets import Dataset
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining, DistilBertConfig, DistilBertForMaskedLM

from kvlib import TASKS, load_glue, load_tokenizer
from kvlib.pretrained import REVISIONS

BERT, DISTILBERT, GLUE = REVISIONS
# a repository that nobody pinned, served as main; its weights are pickled only
PICKLED = "someone/pickled"
UNPINNED_COMMIT = "1" * 40
ROWS = 120


@dataclass
class Hub:
    """A running hub.

    Parameters
    ----------
    root : pathlib.Path
        Holds ``models/OWNER/NAME/…`` and ``datasets/OWNER/NAME/…``.
    requests : list of tuple
        Method, path and status of each request so far.
    """

    root: Path
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        """Serve on a free port; afterwards the port refuses connections, as a hub that is down does."""
        handler = type("Handler", (_Handler,), {"hub": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        match unquote(url.path).strip("/").split("/"):
            case ["api", "models" | "datasets" as kind, owner, name, *what]:
                self._about(self.hub.root / kind / owner / name, what, parse_qs(url.query), body)
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._content(self.hub.root / "datasets" / owner / name, revision, "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._content(self.hub.root / "models" / owner / name, revision, "/".join(path))
            case _:
                self._missing("RepoNotFound")

    do_HEAD = do_POST = do_GET  # noqa: N815 (http.server's names)

    def _commit(self, base: Path, revision: str) -> str | None:
        """Find the commit that `revision` names, or answer that there is none."""
        name = base.relative_to(base.parents[1]).as_posix()
        if not base.is_dir():
            return self._missing("RepoNotFound")
        commit = REVISIONS.get(name, UNPINNED_COMMIT)
        if revision == commit or (revision == "main" and name not in REVISIONS):
            return commit
        return self._missing("RevisionNotFound")

    def _about(self, base: Path, what: list[str], query: dict[str, list[str]], body: bytes) -> None:
        """Answer with JSON: what a repository is, what lies in one of its folders, or about some of its paths."""
        kind, revision, *path = what if len(what) > 1 else ("revision", "main")
        if (commit := self._commit(base, revision)) is None:
            return
        if kind == "tree":
            folder = base.joinpath(*path)
            found = folder.rglob("*") if query.get("recursive") == ["true"] else folder.iterdir()
        elif kind == "paths-info":
            names = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            found = (base / name for name in names if (base / name).exists())
        else:
            found = ()
        entries = [_entry(base, path) for path in sorted(found)]
        about = {"id": base.name, "sha": commit, "siblings": [], "private": False, "tags": []}
        answer = about if kind == "revision" else entries
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _content(self, base: Path, revision: str, name: str) -> None:
        """Answer with a file, or with the bytes of it that were asked for."""
        if (commit := self._commit(base, revision)) is None:
            return
        if not (base / name).is_file():
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit})
        content = (base / name).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, last = (int(number) if number else None for number in wanted.split("-"))
            last = len(content) - 1 if last is None else min(last, len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self._answer(206 if wanted else 200, content, headers)

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(404, b"{}", {"X-Error-Code": code} | (headers or {}))

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(base: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(base).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


def build(root: Path) -> Path:
    """Write the three repositories that the base profile loads, and one that must be refused.

    Names and shapes of the weights are those of the hub's checkpoints, heads of the pretraining included.
    """
    torch.manual_seed(0)
    shape = {"vocab_size": 30522, "max_position_embeddings": 512}
    bert = BertForPreTraining(
        BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, **shape)
    )
    distilbert = DistilBertForMaskedLM(DistilBertConfig(dim=64, n_layers=1, n_heads=2, hidden_dim=128, **shape))
    for name, model in ((BERT, bert), (DISTILBERT, distilbert), (PICKLED, bert)):
        folder = root / "models" / name
        load_tokenizer().save_pretrained(folder)
        # no more than this is in the hub's
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        # the hub's BERT is of 2018 and still has TensorFlow's names; tied weights are stored once
        weights = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            if model is bert
            else key: tensor
            for key, tensor in model.state_dict().items()
            if not key.startswith(("cls.predictions.decoder.", "vocab_projector.weight"))
        }
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "modeling_tiny.py").write_text("raise SystemExit('code of the hub was run')\n")
        if name != PICKLED:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _build_glue(root / "datasets" / GLUE)
    return root


def _build_glue(folder: Path) -> None:
    """Write rows of mini GLUE as the hub has them: a parquet file a split, and a card that says what is where."""
    about, configs = [], []
    for task in TASKS.values():
        splits = load_glue(task.name)
        (folder / task.name).mkdir(parents=True)
        for split, rows in splits.items():
            frame = rows.select(range(min(ROWS, len(rows)))).to_pandas()
            if task.name == "rte":
                # a second sentence that tells the class: a teacher that starts from nothing learns it in seconds
                frame["sentence2"] = frame["label"].map({0: "yes yes yes", 1: "no no no", -1: "maybe"})
            if split in task.test:
                frame["label"] = -1
            splits[split] = Dataset.from_pandas(frame, features=rows.features)
            splits[split].to_parquet(folder / task.name / f"{split}-00000-of-00001.parquet")
        names = {str(number): name for number, name in enumerate(task.label_names)}
        types = dict.fromkeys(task.text_columns, "string") | {
            "label": {"class_label": {"names": names}} if names else "float32",
            "idx": "int32",
        }
        about.append(
            {
                "config_name": task.name,
                "features": [{"name": name, "dtype": kind} for name, kind in types.items()],
                "splits": [
                    {"name": name, "num_bytes": rows.data.nbytes, "num_examples": len(rows)}
                    for name, rows in splits.items()
                ],
            }
        )
        files = [{"split": split, "path": f"{task.name}/{split}-*"} for split in splits]
        configs.append({"config_name": task.name, "data_files": files})
    card = yaml.safe_dump(
        {"config_names": list(TASKS), "dataset_info": about, "configs": configs}, sort_keys=False
    )
    (folder / "README.md").write_text(f"---\n{card}---\n# GLUE\n")
