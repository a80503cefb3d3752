# Thin: each target is one command that can be typed by hand. The environment is .venv, made by tools/setup.sh.

.PHONY: setup demo test android check torch-range formats generate bench clean

setup:             ## make .venv and install edge-sdk with all extras (EXTRAS=coordinator,dev for less)
	@tools/setup.sh

demo: setup        ## 200 devices, ten private rounds, with dropouts and a crash
	@.venv/bin/edge demo

test: setup check  ## everything that must pass
	@tools/setup_android.sh
	@tools/test_kotlin.sh
	@.venv/bin/python -m pytest --cov -n logical --maxprocesses 4 --dist worksteal

android: setup     ## the demo app as a signed APK, and what it takes of its budgets
	@tools/setup_android.sh
	@.venv/bin/python -m android_demo.tools.build_apk

check: setup       ## generated code, style, types, layers
	@tools/check.sh

torch-range: setup ## the exporters with the oldest and the newest torch; a quarter of an hour, 12 GB
	@tools/torch_range.sh

formats:           ## LiteRT and ExecuTorch bundles, in environments of their own; half an hour and gigabytes
	@tools/formats.sh

generate: setup    ## rewrite the generated code from edge_sdk/schema/*.fbs
	@tools/generate.sh

bench: setup       ## what we claim about speed
	@.venv/bin/python -m benchmarks

clean:             ## remove what runs leave behind; .venv stays
	@rm -rf build dist work android_demo/build android_demo/*/target
	@rm -rf .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name .venv -prune -o -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +
