package matcher

// pulls is what containerd downloads when it pulls the images of a request one after another, as the kubelet has it do
// for the containers of a pod.
//
// containerd looks for the layers of an image from the lowest up. A layer that it has unpacked already and one that a
// disk has are passed over. The first that neither has begins one fetch of it and of all layers above it, whether
// disks have those or not; only a blob that was fetched before is not fetched again. What was found on a disk is not
// unpacked, fetched or not. docs/matching.md says the same for people.
type pulls struct {
	images []pull
	// bytes that a registry sends for each blob.
	bytes []int64
	// alone is what is downloaded if no disk has anything.
	alone int64
}

// pull is the pull of one image.
type pull struct {
	blobs   []int // numbers of its layers' blobs, from the lowest up
	lookups []lookup
}

// lookup is a layer that containerd does not have by the time it looks for it.
type lookup struct{ item, place int }

// orderPulls follows the images in the order of the request.
func (p *plan) orderPulls() {
	p.pulls.images = make([]pull, len(p.images))
	numbers := make(map[key]int, len(p.items))
	there := newBitset(len(p.items))
	there.or(p.present)
	for i := range p.images {
		img, l := &p.images[i], &p.pulls.images[i]
		l.blobs = make([]int, len(img.items))
		for place, item := range img.items {
			l.blobs[place] = p.blobNumber(numbers, item, img.blobs[place])
			if !there.has(item) {
				there.set(item)
				l.lookups = append(l.lookups, lookup{item, place})
			}
		}
	}
}

// blobNumber numbers a blob. Layers are the same one if their compressed digests are equal; where that is not known, if
// their diff IDs are.
func (p *plan) blobNumber(numbers map[key]int, item int, b planBlob) int {
	it := &p.items[item]
	switch {
	case b.known:
	case it.hasBlob:
		b.by = it.blob
	case it.hasDiff:
		b.by = it.diff
	case it.hasChain:
		b.by = it.chain
	default:
		p.pulls.bytes = append(p.pulls.bytes, 0)
		return len(p.pulls.bytes) - 1
	}
	number, ok := numbers[b.by]
	if !ok {
		number = len(p.pulls.bytes)
		numbers[b.by] = number
		p.pulls.bytes = append(p.pulls.bytes, 0)
	}
	return number
}

// settleBlobs takes the sizes, once candidates have told theirs: the request's, or else the largest that a candidate
// tells. A blob of unknown size is taken to be worth attaching a disk for.
func (p *plan) settleBlobs() {
	learn := func(size func(img *planImage, place int) int64) (unknown bool) {
		known := newBitset(len(p.pulls.bytes))
		for b, n := range p.pulls.bytes {
			if n > 0 {
				known.set(b)
			}
		}
		for i := range p.images {
			for place, b := range p.pulls.images[i].blobs {
				if !known.has(b) {
					p.pulls.bytes[b] = max(p.pulls.bytes[b], size(&p.images[i], place))
				}
				unknown = unknown || p.pulls.bytes[b] == 0
			}
		}
		return unknown
	}
	if learn(func(img *planImage, place int) int64 { return img.blobs[place].bytes }) &&
		learn(func(img *planImage, place int) int64 { return p.items[img.items[place]].compressed }) {
		learn(func(*planImage, int) int64 { return p.rules.AttachCostBytes + 1 })
	}
	p.pulls.alone = p.pulls.fetch(newBitset(len(p.items)), newBitset(len(p.pulls.bytes)))
}

// fetch is what is downloaded if disks have a set of items. It leaves the fetched blobs in fetched.
func (l *pulls) fetch(has, fetched bitset) int64 {
	fetched.clear()
	var sum int64
	for i := range l.images {
		img := &l.images[i]
		for _, look := range img.lookups {
			if has.has(look.item) {
				continue
			}
			for _, b := range img.blobs[look.place:] {
				if !fetched.has(b) {
					fetched.set(b)
					sum += l.bytes[b]
				}
			}
			break
		}
	}
	return sum
}

// saving is what disks that have a set of items save together. fetched is scratch.
func (p *plan) saving(has, fetched bitset) Saving {
	s := Saving{DownloadBytes: p.pulls.alone - p.pulls.fetch(has, fetched)}
	for i := range p.pulls.images {
		img := &p.pulls.images[i]
		for _, look := range img.lookups {
			if has.has(look.item) && fetched.has(img.blobs[look.place]) {
				s.UnpackBytes += p.items[look.item].unpacked
			}
		}
	}
	return s
}
