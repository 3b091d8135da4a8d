# Rscript mixed_models.R TABLE.csv KIND FORMULA: maximum likelihood by Laplace's method, as JSON.
# Estimates are lme4's, of the negative binomial distribution glmmTMB's, whose curvature is the observed one as ours;
# standard errors of logarithms of standard deviations are glmmTMB's.
suppressMessages({library(lme4); library(glmmTMB)})
given <- commandArgs(TRUE)
table <- read.csv(given[1])
kind <- given[2]
formula <- as.formula(given[3])
families <- list(gaussian = gaussian(), poisson = poisson(), negative_binomial = nbinom2())
other <- glmmTMB(formula, table, family = families[[kind]])
tight <- list(ftol_abs = 1e-12, xtol_abs = 1e-9, maxeval = 1e5)
if (kind == "gaussian") {
  fit <- lmer(formula, table, REML = FALSE, control = lmerControl(optCtrl = tight))
} else if (kind == "poisson") {
  fit <- glmer(formula, table, family = poisson, nAGQ = 1,
               control = glmerControl(optimizer = "nloptwrap", optCtrl = tight))
} else {
  fit <- other
}
program <- if (kind == "negative_binomial") "glmmTMB" else "lme4"
fixed <- if (program == "lme4") fixef(fit) else fixef(fit)$cond
covariance <- if (program == "lme4") vcov(fit) else vcov(fit)$cond
spread <- if (program == "lme4") VarCorr(fit)[[1]] else VarCorr(fit)$cond[[1]]
errors <- sqrt(diag(as.matrix(other$sdr$cov.fixed)))
names(errors) <- make.unique(names(other$sdr$par.fixed))
list_of <- function(x) paste0("[", paste(sprintf("%.10g", x), collapse = ", "), "]")
fields <- c(
  sprintf('"program": "%s %s"', program, packageVersion(program)),
  sprintf('"effects": {%s}', paste(sprintf('"%s": %.10g', names(fixed), fixed), collapse = ", ")),
  sprintf('"errors": %s', list_of(sqrt(diag(as.matrix(covariance))))),
  sprintf('"deviations": %s', list_of(attr(spread, "stddev"))),
  sprintf('"log_deviation_errors": %s', list_of(errors[grepl("^theta", names(errors))][seq_along(attr(spread, "stddev"))])),
  sprintf('"correlation": %s', list_of(attr(spread, "correlation")[lower.tri(attr(spread, "correlation"))])),
  sprintf('"log_likelihood": %.10g', as.numeric(logLik(fit)))
)
if (kind == "gaussian") fields <- c(fields, sprintf('"noise": %.10g', sigma(fit)))
if (kind == "negative_binomial") {
  fields <- c(fields, sprintf('"size": %.10g, "log_size_error": %.10g', sigma(fit), errors[grepl("^betad", names(errors))][1]))
}
cat("{", paste(fields, collapse = ", "), "}\n")
