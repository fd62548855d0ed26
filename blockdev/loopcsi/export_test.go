package loopcsi

import "github.com/container-storage-interface/spec/lib/go/csi"

// Controller and Node are the services that clients reach by gRPC.
func (s *Server) Controller() csi.ControllerServer { return s.controller }

func (s *Server) Node() csi.NodeServer { return s.node }
