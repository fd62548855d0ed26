# berth: "make help" lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# What is costly to make is kept here across runs and clones: tool binaries, demo images.
export BERTH_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/berth
# A Go that scripts/bootstrap got comes first; programs of administrators are not in everybody's path.
export PATH := $(BERTH_CACHE)/go/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin

# containerd versions: all tests run with the first; OLD_CONTAINERD is the old one that "make test" adds; test-matrix
# runs them all.
CONTAINERD     := 2.4.2
OLD_CONTAINERD := 1.7.35
MATRIX         := $(CONTAINERD) 2.3.7 2.2.9 2.1.9 2.0.14 $(OLD_CONTAINERD)

GO_PACKAGES := ./...
# A hanging test prints its goroutines before anybody loses patience.
TEST_TIMEOUT ?= 20m
# "make test-integration RUN=TestFullHit" runs one test. It is used as it is given, $(value RUN): make would read "$|".
RUN ?= .
# What "make test" runs of "make test-vm": a disk of each kind from plug to pull, and one torn out under a container.
VM_SMOKE := TestHotPlug|TestSurpriseRemoval$$
BIN := bin

include $(wildcard scripts/mk/*.mk)

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | sort | awk -F '\t' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: bootstrap
bootstrap: ## install what building and testing need and this machine lacks
	@scripts/bootstrap

.PHONY: build
build: bootstrap ## build berth and berthd into bin/
	go build -buildvcs=auto -o $(BIN)/ ./cmd/...

.PHONY: test
test: bootstrap ## everything a change has to pass: all packages, then real containerd, new and old
	scripts/gotest -timeout $(TEST_TIMEOUT) $(GO_PACKAGES)
	$(MAKE) --no-print-directory test-csi
	$(MAKE) --no-print-directory test-integration
	$(MAKE) --no-print-directory test-integration CONTAINERD=$(OLD_CONTAINERD)
	$(MAKE) --no-print-directory test-vm RUN='$(VM_SMOKE)'

.PHONY: test-integration
test-integration: bootstrap ## tests with a real containerd, CONTAINERD=VERSION
	@scripts/tools containerd@$(CONTAINERD) runc registry nerdctl >/dev/null
	BERTH_CONTAINERD=$(CONTAINERD) scripts/gotest -count=1 -tags integration -timeout $(TEST_TIMEOUT) -run '$(value RUN)' ./test/integration/... ./test/harness/containerd/...

.PHONY: test-trees
test-trees: bootstrap ## 10,000 random images, unpacked as containerd does; BERTH_STEPS=N images, BERTH_SEED=N the walk of a seed
	BERTH_STEPS=$${BERTH_STEPS:-10000} scripts/gotest -timeout 120m -count=1 -run 'TestTrees$$' ./layerdisk/tree

.PHONY: test-csi
test-csi: bootstrap ## the CSI project's conformance suite, csi-sanity, against "berth csi-loop"
	cd test/csisanity && ../../scripts/gotest -count=1 -timeout $(TEST_TIMEOUT) ./...

.PHONY: test-vm
test-vm: ## disks plugged into virtual machines (emulated, no KVM) and torn out, on Debian's kernel; some minutes
	@scripts/bootstrap vm
	@scripts/tools containerd runc registry >/dev/null
	scripts/gotest -count=1 -tags vm -timeout $(TEST_TIMEOUT) -run '$(value RUN)' ./test/vm/... ./test/harness/vm/...

.PHONY: test-matrix
test-matrix: bootstrap ## tests with every supported containerd
	@failed=; for version in $(MATRIX); do \
		echo "== containerd $$version"; \
		$(MAKE) --no-print-directory test-integration CONTAINERD=$$version || failed="$$failed $$version"; \
	done; [ -z "$$failed" ] || { echo "failed with containerd$$failed"; exit 1; }

.PHONY: check
check: lint proto-lint ## vet, lint, the API, all packages with the race detector (systemd units are checked by a test)
	scripts/gotest -race -timeout $(TEST_TIMEOUT) $(GO_PACKAGES)

.PHONY: lint
lint: bootstrap ## vet and lint, generated API code included
	go vet $(GO_PACKAGES)
	go vet -tags integration,vm ./test/...
	$$(scripts/tools golangci-lint)/golangci-lint run

.PHONY: fuzz
fuzz: bootstrap ## run every fuzz target for FUZZTIME (10s)
	@scripts/fuzz $(or $(FUZZTIME),10s)

.PHONY: demo
demo: ## build a layer disk from real images, pull them with berth and with overlayfs, show the difference
	@scripts/bootstrap demo
	@go run ./test/demo

.PHONY: bench
bench: ## measure berth against overlayfs; table, and JSON in bench.json (long); PARTS=slow measures one part
	@scripts/bootstrap demo
	@go run ./test/bench -json bench.json -parts '$(PARTS)'

.PHONY: clean
clean: ## remove what was built here; the cache in $BERTH_CACHE stays
	rm -rf $(BIN) bench.json
