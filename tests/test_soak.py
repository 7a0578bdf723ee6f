"""Endurance: a short edition of soak.py, as anybody runs it."""
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent / "measure" / "soak.py"


def test_nothing_is_lost_or_doubled_in_a_short_soak():
    run = subprocess.Popen([sys.executable, str(SOAK), "--seconds", "20", "--seed", "53"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output = run.communicate(timeout=180)[0]
    finally:
        run.terminate()  # it stops its own processes
        run.wait()
    print(output)
    assert run.returncode == 0
    assert "WRONG" not in output
    assert "Nothing was lost or doubled." in output
