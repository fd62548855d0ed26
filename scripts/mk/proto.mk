# Generated code of the control API. The generators are built at these versions; the output is committed.
BUF_VERSION            := v1.57.2
PROTOC_GEN_GO_VERSION  := v1.36.12
PROTOC_GEN_GRPC_VERSION := v1.6.2

PROTO_BIN := $(abspath $(or $(BERTH_CACHE),.cache))/proto-$(BUF_VERSION)-$(PROTOC_GEN_GO_VERSION)-$(PROTOC_GEN_GRPC_VERSION)
# The API as it was promised, for the check that nothing of it is taken back: a compiled descriptor set.
PROTO_PROMISE := proto/berth/control/v1/promise.binpb

$(PROTO_BIN)/.done:
	mkdir -p $(PROTO_BIN)
	GOBIN=$(PROTO_BIN) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GRPC_VERSION)
	touch $@

.PHONY: proto proto-lint
proto: $(PROTO_BIN)/.done ## generate the control API's code from proto/, and record what is new; refuses to take something back
	PATH=$(PROTO_BIN):$$PATH scripts/proto-breaking $(PROTO_PROMISE)
	PATH=$(PROTO_BIN):$$PATH buf build --as-file-descriptor-set --exclude-source-info -o $(PROTO_PROMISE)
	PATH=$(PROTO_BIN):$$PATH buf generate

proto-lint: $(PROTO_BIN)/.done ## lint proto/, check that nothing is taken back, and that the committed code is what proto/ generates
	PATH=$(PROTO_BIN):$$PATH buf lint
	PATH=$(PROTO_BIN):$$PATH scripts/proto-breaking $(PROTO_PROMISE)
	rm -rf $(PROTO_BIN)/check
	PATH=$(PROTO_BIN):$$PATH buf generate --output $(PROTO_BIN)/check
	PATH=$(PROTO_BIN):$$PATH buf build --as-file-descriptor-set --exclude-source-info -o $(PROTO_BIN)/check/$(PROTO_PROMISE)
	diff -r -x '*.proto' -x '*_test.go' proto/berth $(PROTO_BIN)/check/proto/berth || { echo 'run "make proto" and commit what it changes'; exit 1; }
