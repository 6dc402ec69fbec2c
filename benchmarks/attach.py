"""Attach many adapters to one base and switch among them: the cost of one must not grow with their number."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

import deltatune
from benchmarks.measure import ALL_LINEARS, PEFT_LINEARS, Clock, append, clock_of, llama, options


def main() -> None:
    arguments = options("attach", adapters=256, peft=48, rank=8)
    clock = clock_of(arguments)
    times, switches = deltatune_attach(arguments.adapters, arguments.rank, clock)
    peft_times = peft_attach(arguments.peft, arguments.rank, clock)
    print(f"\nattach\n{'adapters':>10}{'deltatune, in all':>20}{'peft, in all':>16}")
    marks = [n for n in (8, 16, 32, arguments.peft, 64, 128, 192, arguments.adapters) if n <= arguments.adapters]
    for n in sorted(set(marks)):
        print(f"{n:10}{sum(times[:n]):18.2f} s" + (f"{sum(peft_times[:n]):14.2f} s" if n <= len(peft_times) else ""))
    quarter = len(times) // 4
    growth = sum(times[-quarter:]) / sum(times[:quarter])
    expected = extrapolate(peft_times, arguments.adapters)
    print(
        f"deltatune: the last quarter took {growth:.2f} times the first; in all at most 5 s: {verdict(sum(times), 5)}"
    )
    print(f"peft: {arguments.adapters} would take {expected:.0f} s if the cost keeps growing linearly")
    for n, seconds in switches.items():
        print(f"route change with {n} adapters attached: {1e3 * seconds:.2f} ms")
    line = {"deltatune": times, "peft": peft_times, "switch": switches, "growth": growth, "extrapolated_peft": expected}
    append(arguments, {"benchmark": "attach", **line})


def verdict(value: float, most: float) -> str:
    return f"{value:.2f} {'yes' if value <= most else 'NO'}"


def deltatune_attach(adapters: int, rank: int, clock: Clock) -> tuple[list[float], dict[int, float]]:
    """Seconds of each attach, and of a route change by the number of adapters attached."""
    host = deltatune.Host(llama())
    seconds, switches = [], {}
    for i in range(adapters):
        start = clock()
        host.attach(f"a{i}", deltatune.LoRA(r=rank, sites=ALL_LINEARS), seed=i)
        seconds.append(clock() - start)
        if i + 1 in (2, adapters):
            start = clock()
            for turn in range(20):
                host.use(f"a{(0, i)[turn % 2]}")
            switches[i + 1] = (clock() - start) / 20
    return seconds, switches


def peft_attach(adapters: int, rank: int, clock: Clock) -> list[float]:
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=PEFT_LINEARS, task_type="CAUSAL_LM")
    model = llama()
    seconds = []
    for i in range(adapters):
        start = clock()
        if i == 0:
            wrapped = get_peft_model(model, config, adapter_name="a0")
        else:
            wrapped.add_adapter(f"a{i}", config)
        seconds.append(clock() - start)
    return seconds


def extrapolate(seconds: list[float], adapters: int) -> float:
    """Total for more adapters when the cost of one grows linearly with those before it (least squares)."""
    n = len(seconds)
    middle, mean = (n - 1) / 2, sum(seconds) / n
    slope = sum((i - middle) * (s - mean) for i, s in enumerate(seconds)) / sum((i - middle) ** 2 for i in range(n))
    return sum(max(mean + slope * (i - middle), 0) for i in range(adapters))


if __name__ == "__main__":
    main()
