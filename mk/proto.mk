# Generated code of the control API. The generators are built at these versions; the output is committed.
BUF_VERSION            := v1.57.2
PROTOC_GEN_GO_VERSION  := v1.36.12
PROTOC_GEN_GRPC_VERSION := v1.6.2

PROTO_BIN := $(abspath $(or $(BERTH_CACHE),.cache))/proto-$(BUF_VERSION)-$(PROTOC_GEN_GO_VERSION)-$(PROTOC_GEN_GRPC_VERSION)

$(PROTO_BIN)/.done:
	mkdir -p $(PROTO_BIN)
	GOBIN=$(PROTO_BIN) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
	GOBIN=$(PROTO_BIN) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GRPC_VERSION)
	touch $@

.PHONY: proto proto-lint
proto: $(PROTO_BIN)/.done ## generate the control API's code from proto/
	PATH=$(PROTO_BIN):$$PATH buf generate

proto-lint: $(PROTO_BIN)/.done ## lint proto/ and check that the committed code is what it generates
	PATH=$(PROTO_BIN):$$PATH buf lint
	PATH=$(PROTO_BIN):$$PATH buf generate --output $(PROTO_BIN)/check
	diff -r -x '*.proto' proto/berth $(PROTO_BIN)/check/proto/berth
