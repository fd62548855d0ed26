package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"google.golang.org/grpc/status"

	"berth.dev/berth/builder"
)

// buildView shows the progress of one build.
type buildView interface {
	event(e builder.Event)
	// end takes the result or the error of the build, and returns the first error of writing the output.
	end(result *builder.Result, err error) error
}

// short returns enough of a digest to distinguish layers.
func short(d digest.Digest) string {
	const chars = 12
	encoded := d.Encoded()
	return encoded[:min(chars, len(encoded))]
}

// errorCode returns the class of an error as gRPC names it, such as NotFound.
func errorCode(err error) string { return status.Code(errgrpc.ToGRPC(err)).String() }

// jsonView writes lines of JSON.
type jsonView struct {
	enc *json.Encoder
	err error
}

func newJSONView(w io.Writer) *jsonView { return &jsonView{enc: json.NewEncoder(w)} }

func (v *jsonView) event(e builder.Event) { v.write(e) }

func (v *jsonView) write(line any) {
	if v.err == nil {
		v.err = v.enc.Encode(line)
	}
}

func (v *jsonView) end(result *builder.Result, err error) error {
	if err != nil {
		line := struct {
			Event       string `json:"event"`
			Error       string `json:"error"`
			Code        string `json:"code"`
			NeededBytes int64  `json:"needed_bytes,omitempty"`
		}{Event: "error", Error: err.Error(), Code: errorCode(err)}
		if small := (*builder.TooSmallError)(nil); errors.As(err, &small) {
			line.NeededBytes = small.NeededBytes
		}
		v.write(line)
		return v.err
	}
	v.write(struct {
		Event  string          `json:"event"`
		Result *builder.Result `json:"result"`
	}{"result", result})
	return v.err
}

// lineView writes a line for each thing done, for logs.
type lineView struct {
	w            io.Writer
	done, layers int
	err          error
}

func newLineView(w io.Writer) *lineView { return &lineView{w: w} }

func (v *lineView) event(e builder.Event) {
	line := v.line(e)
	if line != "" && v.err == nil {
		_, v.err = fmt.Fprintln(v.w, line)
	}
}

func (v *lineView) line(e builder.Event) string {
	switch e.Kind {
	case builder.EventResolved:
		return fmt.Sprintf("image %s for %s: manifest %s, %s", e.Image.Reference, e.Image.Platform, e.Image.Manifest, count(e.Image.Layers, "layer"))
	case builder.EventPlanned:
		v.layers = e.Plan.Layers
		return fmt.Sprintf("%s with %s, %s to fetch", count(e.Plan.Images, "image"), count(e.Plan.Layers, "distinct layer"), size(e.Plan.BlobBytes))
	case builder.EventLayerDone:
		v.done++
		return fmt.Sprintf("layer %s done (%d of %d): fetched %s, unpacked %s in %s", short(e.Layer.Blob), v.done, v.layers,
			size(e.Layer.BlobBytes), size(e.Layer.UnpackedBytes), count(int(e.Layer.Inodes), "inode"))
	case builder.EventFinishing:
		return "writing metadata and index"
	case builder.EventLayerStarted, builder.EventLayerProgress:
	}
	return ""
}

func (v *lineView) end(*builder.Result, error) error { return v.err }

// barView draws a bar for each layer in work and one for all.
type barView struct {
	progress *mpb.Progress
	total    *mpb.Bar
	layers   map[int]*mpb.Bar
	fetched  map[int]int64
}

func newBarView(w io.Writer) *barView {
	return &barView{
		progress: mpb.New(mpb.WithOutput(w), mpb.WithWidth(48), mpb.WithAutoRefresh()),
		layers:   make(map[int]*mpb.Bar), fetched: make(map[int]int64),
	}
}

func (v *barView) event(e builder.Event) {
	switch e.Kind {
	case builder.EventResolved:
		_, _ = fmt.Fprintf(v.progress, "%s for %s: %s\n", e.Image.Reference, e.Image.Platform, count(e.Image.Layers, "layer")) // a progress display
	case builder.EventPlanned:
		v.total = v.bar("total", e.Plan.BlobBytes, mpb.BarPriority(e.Plan.Layers))
	case builder.EventLayerStarted:
		v.layers[e.Layer.Number] = v.bar(short(e.Layer.Blob), e.Layer.BlobBytes, mpb.BarPriority(e.Layer.Number), mpb.BarRemoveOnComplete())
	case builder.EventLayerProgress, builder.EventLayerDone:
		v.advance(e)
	case builder.EventFinishing:
		_, _ = fmt.Fprintln(v.progress, "writing metadata and index") // a progress display
	}
}

func (v *barView) bar(name string, total int64, opts ...mpb.BarOption) *mpb.Bar {
	opts = append(opts,
		mpb.PrependDecorators(decor.Name(name, decor.WC{W: 13, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.Any(sizes(time.Now()))),
	)
	// A total of 0 would mean that it is unknown.
	return v.progress.AddBar(max(1, total), opts...)
}

// sizes says how much of a bar is done, and how fast. The library's own decorators write bytes as "b".
func sizes(begun time.Time) decor.DecorFunc {
	return func(s decor.Statistics) string {
		rate := float64(s.Current) / max(time.Since(begun).Seconds(), 1e-3)
		return fmt.Sprintf("%s / %s  %s/s", size(s.Current), size(s.Total), units.BytesSize(rate))
	}
}

func (v *barView) advance(e builder.Event) {
	l := e.Layer
	bar := v.layers[l.Number]
	if bar == nil || v.total == nil {
		return
	}
	v.total.IncrInt64(l.FetchedBytes - v.fetched[l.Number])
	v.fetched[l.Number] = l.FetchedBytes
	if e.Kind == builder.EventLayerDone {
		bar.SetTotal(max(1, l.BlobBytes), true)
		return
	}
	// The last byte is not the end of the work: hold the bar until the layer is done.
	bar.SetCurrent(min(l.FetchedBytes, max(1, l.BlobBytes)-1))
}

func (v *barView) end(_ *builder.Result, err error) error {
	for _, bar := range v.layers {
		if !bar.Completed() {
			bar.Abort(true)
		}
	}
	if v.total != nil && !v.total.Completed() {
		v.total.Abort(err != nil)
	}
	v.progress.Wait()
	return nil
}
