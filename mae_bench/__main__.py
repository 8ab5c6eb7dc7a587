"""``python -m mae_bench`` is the program ``mae-bench``."""

from mae_bench.cli import app

if __name__ == "__main__":
    app(prog_name="mae-bench")
