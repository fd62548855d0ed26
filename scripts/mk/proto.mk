# Generated code of the APIs. The generators are built at these versions; the output is committed.
BUF_VERSION            := v1.57.2
PROTOC_GEN_GO_VERSION  := v1.36.12
PROTOC_GEN_GRPC_VERSION := v1.6.2

PROTO_BIN := $(abspath $(or $(BERTH_CACHE),.cache))/proto-$(BUF_VERSION)-$(PROTOC_GEN_GO_VERSION)-$(PROTOC_GEN_GRPC_VERSION)
# The APIs as they were promised, for the check that nothing of them is taken back: a compiled descriptor set for each
# package.
PROTO_PACKAGES := proto/berth/control/v1 proto/berth/imagesnapshot/v1

$(PROTO_BIN)/.done:
	mkdir -p $(PROTO_BIN)
	GOBIN=$(PROTO_BIN) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GRPC_VERSION)
	touch $@

.PHONY: proto proto-lint
proto: $(PROTO_BIN)/.done ## generate the APIs' code from proto/, and record what is new; refuses to take something back
	PATH=$(PROTO_BIN):$$PATH scripts/proto-breaking $(PROTO_PACKAGES)
	PATH=$(PROTO_BIN):$$PATH scripts/proto-record . $(PROTO_PACKAGES)
	PATH=$(PROTO_BIN):$$PATH buf generate

proto-lint: $(PROTO_BIN)/.done ## lint proto/, check that nothing is taken back, and that the committed code is what proto/ generates
	PATH=$(PROTO_BIN):$$PATH buf lint
	PATH=$(PROTO_BIN):$$PATH scripts/proto-breaking $(PROTO_PACKAGES)
	rm -rf $(PROTO_BIN)/check
	PATH=$(PROTO_BIN):$$PATH buf generate --output $(PROTO_BIN)/check
	PATH=$(PROTO_BIN):$$PATH scripts/proto-record $(PROTO_BIN)/check $(PROTO_PACKAGES)
	diff -r -x '*.proto' -x '*_test.go' proto/berth $(PROTO_BIN)/check/proto/berth || { echo 'run "make proto" and commit what it changes'; exit 1; }
