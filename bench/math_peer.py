"""
The verdicts of Math-Verify and of SymPy, for bench/math.ts: JSON Lines {completion, reference, answer?} in, {correct,
seconds, sympy} out. sympy is null where latex2sympy2_extended cannot read one of the two, or SymPy takes too long.
"""
import json
import logging
import signal
import sys
import time
import warnings

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify

logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore")


class Late(BaseException):
    pass


def late(*_):
    raise Late


signal.signal(signal.SIGALRM, late)


def compare(answer, reference):
    try:
        signal.alarm(5)
        a, b = latex2sympy(answer), latex2sympy(reference)
        if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
            same = a == b or sympy.simplify(a - b) == 0
        else:
            same = a == b
        return bool(same)
    except (Exception, Late):
        return None
    finally:
        signal.alarm(0)


def judge(case):
    try:
        return bool(verify(parse(f"${case['reference']}$"), parse(case["completion"])))
    except Exception:
        return False


for line in sys.stdin:
    case = json.loads(line)
    start = time.process_time()
    verdict = {"correct": judge(case), "seconds": time.process_time() - start}
    if "answer" in case:
        verdict["sympy"] = compare(case["answer"], case["reference"])
    print(json.dumps(verdict), flush=True)
