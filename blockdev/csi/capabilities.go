package csi

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.dev/berth/blockdev"
)

// plugin is what a CSI driver says of itself.
type plugin struct {
	name string
	// What the controller can do.
	volumes, publish, publishReadOnly, listVolumes, getVolume bool
	snapshots, listSnapshots, getSnapshot                     bool
	// What the node can do.
	stage bool
	// topology says that volumes are not everywhere, and segments where this node is.
	topology   bool
	segments   map[string]string
	nodeID     string
	maxVolumes int
}

// ask asks identity first, then the services that there are.
func (d *connection) ask(ctx context.Context) (*plugin, error) {
	name, services, err := d.identify(ctx, d.node)
	if err != nil {
		return nil, err
	}
	p := &plugin{name: name}
	if d.config.Controller != d.config.Node {
		if name, services, err = d.identify(ctx, d.controller); err != nil {
			return nil, err
		}
		if name != p.name {
			return nil, fmt.Errorf("the node's socket is that of %q, the controller's that of %q: name two of one driver: %w", p.name, name, blockdev.ErrInvalid)
		}
	}
	p.topology = services[csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS]
	if services[csi.PluginCapability_Service_CONTROLLER_SERVICE] {
		if err := d.askController(ctx, p); err != nil {
			return nil, err
		}
	}
	return p, d.askNode(ctx, p)
}

func (d *connection) identify(ctx context.Context, s *service) (string, map[csi.PluginCapability_Service_Type]bool, error) {
	client := csi.NewIdentityClient(s.conn)
	info, err := call(ctx, s, asking, "GetPluginInfo", client.GetPluginInfo, &csi.GetPluginInfoRequest{})
	if err != nil {
		return "", nil, err
	}
	probe, err := call(ctx, s, asking, "Probe", client.Probe, &csi.ProbeRequest{})
	if err != nil {
		return "", nil, err
	}
	// Not set means ready.
	if ready := probe.GetReady(); ready != nil && !ready.GetValue() {
		return "", nil, fmt.Errorf("driver %s: %w", info.GetName(), blockdev.ErrNotReady)
	}
	caps, err := call(ctx, s, asking, "GetPluginCapabilities", client.GetPluginCapabilities, &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		return "", nil, err
	}
	services := make(map[csi.PluginCapability_Service_Type]bool)
	for _, c := range caps.GetCapabilities() {
		services[c.GetService().GetType()] = true
	}
	return info.GetName(), services, nil
}

func (d *connection) askController(ctx context.Context, p *plugin) error {
	caps, err := call(ctx, d.controller, asking, "ControllerGetCapabilities", csi.NewControllerClient(d.controller.conn).ControllerGetCapabilities,
		&csi.ControllerGetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	known := map[csi.ControllerServiceCapability_RPC_Type]*bool{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME:     &p.volumes,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME: &p.publish,
		csi.ControllerServiceCapability_RPC_PUBLISH_READONLY:         &p.publishReadOnly,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES:             &p.listVolumes,
		csi.ControllerServiceCapability_RPC_GET_VOLUME:               &p.getVolume,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT:   &p.snapshots,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS:           &p.listSnapshots,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT:             &p.getSnapshot,
	}
	for _, c := range caps.GetCapabilities() {
		if has := known[c.GetRpc().GetType()]; has != nil {
			*has = true
		}
	}
	return nil
}

func (d *connection) askNode(ctx context.Context, p *plugin) error {
	client := csi.NewNodeClient(d.node.conn)
	caps, err := call(ctx, d.node, asking, "NodeGetCapabilities", client.NodeGetCapabilities, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	for _, c := range caps.GetCapabilities() {
		if c.GetRpc().GetType() == csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME {
			p.stage = true
		}
	}
	info, err := call(ctx, d.node, asking, "NodeGetInfo", client.NodeGetInfo, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	p.nodeID = info.GetNodeId()
	p.maxVolumes = int(max(0, info.GetMaxVolumesPerNode()))
	p.segments = info.GetAccessibleTopology().GetSegments()
	if len(d.config.Topology) > 0 {
		p.segments = d.config.Topology
	}
	return nil
}

// capability is how every volume is used.
func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// where says that volumes have to be made where this node can have them.
func (p *plugin) where() *csi.TopologyRequirement {
	if !p.topology || len(p.segments) == 0 {
		return nil
	}
	here := []*csi.Topology{{Segments: p.segments}}
	return &csi.TopologyRequirement{Requisite: here, Preferred: here}
}

// CheckProvisioning asks the CSI driver whether it makes volumes and volume snapshots: ErrUnsupported says what it
// lacks.
func (d *Driver) CheckProvisioning(ctx context.Context) error {
	p, err := d.c.connect(ctx)
	switch {
	case err != nil:
		return err
	case !p.volumes:
		return p.unsupported("it makes no volumes (CREATE_DELETE_VOLUME)")
	case !p.snapshots:
		return p.unsupported("it has no volume snapshots (CREATE_DELETE_SNAPSHOT)")
	}
	return nil
}

// unsupported names what the driver lacks.
func (p *plugin) unsupported(what string) error {
	return fmt.Errorf("driver %s: %s: %w", p.name, what, blockdev.ErrUnsupported)
}
