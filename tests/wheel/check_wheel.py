"""Use the installed wheel as a stranger would. `make wheel-check` runs this elsewhere; argument 1 is the checkout.

Not collected by pytest: it belongs to an environment that has the wheel and nothing of the checkout.
"""

import subprocess
import sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path


def check_contents() -> None:
    """The distribution put `vtc`, its metadata and the command into the environment, and nothing else."""
    tops = {Path(str(file)).parts[0] for file in distribution("vtc-vlm").files if ".." not in Path(str(file)).parts}
    metadata = {top for top in tops if top.startswith("vtc_vlm-") and top.endswith(".dist-info")}
    assert tops - metadata == {"vtc"}, f"top-level names of the wheel: {sorted(tops)}"
    assert len(metadata) == 1, metadata


def check_complete(checkout: Path) -> None:
    """Every file of the checkout's library arrived (Python, YAML, mark of being typed, templates), and no other did."""
    kinds = (".py", ".yaml", ".typed", ".j2", ".css", ".js")
    homes = {"vtc": "vtc", "patches": "vtc/patches", "eval": "vtc/eval", "configs": "vtc/configs"}
    wanted = set()
    for source, home in homes.items():
        for path in (checkout / source).rglob("*"):
            if path.suffix in kinds:
                wanted.add(f"{home}/{path.relative_to(checkout / source).as_posix()}")
    shipped = {str(f) for f in distribution("vtc-vlm").files if str(f).startswith("vtc/")}
    shipped = {name for name in shipped if name.endswith(kinds)}
    assert shipped == wanted, f"missing: {sorted(wanted - shipped)}; too many: {sorted(shipped - wanted)}"


def check_imports(checkout: Path) -> None:
    """Every part is found in the installed package."""
    import vtc
    import vtc.engine
    import vtc.eval.tasks
    import vtc.kernels.attention_reduce
    import vtc.patches

    for module in (vtc, vtc.engine, vtc.eval, vtc.eval.tasks, vtc.kernels.attention_reduce, vtc.patches):
        where = Path(module.__file__).resolve()
        installed = ".venv-wheel" in where.parts or not where.is_relative_to(checkout)
        assert installed, f"{module.__name__} comes from {where}"


def check_configs() -> None:
    """The YAML files are package data."""
    import yaml

    text = (files("vtc.configs") / "strategies" / "hiprune.yaml").read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)


def check_demo() -> None:
    """The bundled model answers a question, untouched, patched, and after the patch is gone."""
    from transformers.utils import logging

    import vtc
    import vtc.demo
    from vtc.demo import benchmark

    logging.disable_progress_bar()
    model, processor = vtc.demo.load()
    row = next(iter(benchmark.samples("test", limit=1)))
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(images=row["image"], text=prompt, return_tensors="pt")

    def answer() -> str:
        new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    plain = answer()
    vtc.patch(model, "hiprune", keep=0.5)
    pruned = answer()
    assert vtc.report(model) is not None
    vtc.unpatch(model)
    assert answer() == plain, "the model answers differently after unpatch"
    print(f"  question {row['question']!r}: truth {row['answer']!r}, all tokens {plain!r}, half of them {pruned!r}")


def check_commands() -> None:
    """The console script and `python -m vtc` run."""
    script = Path(sys.executable).parent / "vtc"
    for command in ([script, "list"], [script, "show", "hiprune"], [sys.executable, "-m", "vtc", "list"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert "hiprune" in done.stdout, f"{command}: {done.stdout}"


def main() -> None:
    """Run all checks; the first failure ends the run."""
    checkout = Path(sys.argv[1]).resolve()
    assert not Path.cwd().resolve().is_relative_to(checkout), "run this outside the checkout"
    check_contents()
    check_complete(checkout)
    check_imports(checkout)
    check_configs()
    check_demo()
    check_commands()
    print(f"wheel of vtc-vlm {distribution('vtc-vlm').version}: all checks passed")


if __name__ == "__main__":
    main()
