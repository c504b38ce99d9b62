.PHONY: relink
relink:
	@~/venv/dev/bin/pip install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
