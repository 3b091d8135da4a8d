"""statsmodels' MixedLM by maximum likelihood; `benchmarks.learning.mixed` runs it where that is installed.

python benchmarks/learning/mixed_reference.py TABLE.csv GROUP TARGET FEATURE      # prints JSON
"""

import json
import sys
import time

import pandas
import statsmodels
import statsmodels.formula.api as formula

path, group, target, feature = sys.argv[1:]
table = pandas.read_csv(path)
began = time.perf_counter()
model = formula.mixedlm(f"{target} ~ {feature}", table, groups=table[group], re_formula=f"~{feature}")
fit = model.fit(reml=False, method=["lbfgs", "bfgs", "powell"])
found = {"version": statsmodels.__version__, "converged": bool(fit.converged)}
found |= {"seconds": time.perf_counter() - began, "mean": list(map(float, fit.fe_params))}
found |= {"covariance": fit.cov_re.to_numpy().tolist(), "noise_variance": float(fit.scale)}
found |= {"log_likelihood": float(fit.llf)}
print(json.dumps(found | {"effects": {str(k): list(map(float, v)) for k, v in fit.random_effects.items()}}))
