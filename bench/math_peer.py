"""Math-Verify's verdicts, for bench/math.ts: JSON Lines {completion, reference} in, {correct, seconds} out."""
import json
import logging
import sys
import time

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
for line in sys.stdin:
    case = json.loads(line)
    start = time.process_time()
    gold = parse(f"${case['reference']}$")
    correct = bool(verify(gold, parse(case["completion"])))
    print(json.dumps({"correct": correct, "seconds": time.process_time() - start}), flush=True)
