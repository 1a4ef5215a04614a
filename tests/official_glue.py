"""Small files in exactly the layouts that GLUE's own archive unpacks to; the sentences are our own."""

QUOTED = 'He said "no, and left.'
# per task: folder, and per file its lines
FILES = {
    "cola": ("CoLA", {
        "train": ["gj04\t1\t\tThe dog barked.", 'gj04\t0\t*\tThe "dog barked.', "r-67\t1\t\tA cat sat."],
        "dev": ["gj04\t1\t\tThe cow mooed.", "gj04\t0\t*\tCow the mooed."],
        "test": ["index\tsentence", "0\tThe hen sat.", "1\tHen sat the."],
    }),
    "sst2": ("SST-2", {
        "train": ["sentence\tlabel", f"{QUOTED}\t0", "a fine film \t1"],
        "dev": ["sentence\tlabel", "a dull play \t0", "a fine play \t1"],
        "test": ["index\tsentence", "0\ta film", "1\ta play"],
    }),
    "mrpc": ("MRPC", {
        "train": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
                  f'1\t70\t71\t{QUOTED}\t"No," he said.', "0\t7\t8\tA.\tB."],
        "dev": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\tC.\tD.", f"0\t3\t4\t{QUOTED}\tE."],
        "test": ["\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tF.\tG.", "1\t3\t4\tH.\tI."],
    }),
    "stsb": ("STS-B", {
        "train": ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
                  f"0\tmain\tfile\t2012\t0001\tnone\tnone\t{QUOTED}\tB.\t5.000",
                  "1\tmain\tfile\t2012\t2\tnone\tnone\tC.\tD.\t0.250"],
        "dev": ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
                "0\tmain\tfile\t2012\t0001\tnone\tnone\tE.\tF.\t3.2",
                "1\tmain\tfile\t2012\t2\tnone\tnone\tG.\tH.\t1"],
        "test": ["index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
                 "0\tmain\tfile\t2012\t0001\tnone\tnone\tI.\tJ.", "1\tmain\tfile\t2012\t2\tnone\tnone\tK.\tL."],
    }),
    "qqp": ("QQP", {
        "train": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "133273\t1\t2\tHow?\tIn what way?\t1",
                  "402555\t3\t4\tWhy", f"360472\t5\t6\t{QUOTED}\tWhen?\t0"],
        "dev": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                "1\t1\t2\tWho?\tWhich?\t0", "2\t3\t4\tWho?\tWho?\t1"],
        "test": ["id\tquestion1\tquestion2", "0\tWhere?\tTo what place?", "1\tWhere?\tWhen?"],
    }),
    "qnli": ("QNLI", {
        "train": ["index\tquestion\tsentence\tlabel",
                  f"0\tWho?\t{QUOTED}\tentailment", "1\tWhen?\tHere.\tnot_entailment"],
        "dev": ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment", "1\tWhen?\tShe.\tnot_entailment"],
        "test": ["index\tquestion\tsentence", "0\tWho?\tIt.", "1\tWhen?\tThey."],
    }),
    "rte": ("RTE", {
        "train": ["index\tsentence1\tsentence2\tlabel",
                  f"0\t{QUOTED}\tHe left.\tentailment", "1\tA.\tB.\tnot_entailment"],
        "dev": ["index\tsentence1\tsentence2\tlabel", "0\tC.\tD.\tnot_entailment", "1\tE.\tF.\tentailment"],
        "test": ["index\tsentence1\tsentence2", "0\tG.\tH.", "1\tI.\tJ."],
    }),
}  # fmt: skip
_PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
_FIRST = f"index\tpromptID\tpairID\tgenre\t{_PARSES}"
_ROW = "{0}\t31193\t31193n\tgovernment\t(\t(\t(ROOT\t(ROOT\t{1}\t{2}"
_NAMES = ("entailment", "neutral", "contradiction")
_FIVE = "\t".join(f"label{number}" for number in range(1, 6))
_MNLI = {
    "train": [f"{_FIRST}\tlabel1\tgold_label"]
    + [_ROW.format(n, QUOTED, f"{name}.") + f"\t{name}\t{name}" for n, name in enumerate(_NAMES)],
    "dev_matched": [f"{_FIRST}\t{_FIVE}\tgold_label"]
    + [_ROW.format(n, "A.", "B.") + f"\tneutral\tneutral\t\t\t{name}\t{name}" for n, name in enumerate(_NAMES)],
    "test_matched": [_FIRST, _ROW.format(0, "C.", "D."), _ROW.format(1, "E.", "F.")],
}
FILES["mnli"] = (
    "MNLI",
    _MNLI | {"dev_mismatched": _MNLI["dev_matched"], "test_mismatched": _MNLI["test_matched"]},
)


def write_official(folder, **changes):
    """Write all eight tasks into `folder`; a change is TASK__FILE=lines."""
    for task, (name, files) in FILES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, lines in files.items():
            lines = changes.get(f"{task}__{file}", lines)
            (folder / name / f"{file}.tsv").write_bytes(("\n".join(lines) + "\n").encode())
    return folder
