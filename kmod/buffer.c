// SPDX-License-Identifier: GPL-2.0-only
/*
 * Buffers: memory for a device to reach, allocated here or pinned (pin.c).
 *
 * Contiguous and scattered buffers are arrays of single pages, each with a reference
 * count of its own, so that mmaps of them can outlast the device; each mmap holds the
 * buffer as well. The pages of a kmalloc buffer are the slab allocator's, those of a
 * pinned one the program's: neither is mmapped from here.
 */
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/nospec.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "compat.h"
#include "private.h"

#define BUFFER_MAX_LENGTH	SZ_1G
#define KMALLOC_MAX_LENGTH	SZ_64K

/* Not under the lock. Of the nodes that the caller's cpuset has, and nobody is killed. */
#define BUFFER_GFP	(GFP_KERNEL_ACCOUNT | __GFP_HARDWALL | __GFP_ZERO | __GFP_NOWARN | \
			 __GFP_RETRY_MAYFAIL)

static struct dmaprobe_buffer *obj_buffer(struct dmaprobe_object *obj)
{
	return container_of(obj, struct dmaprobe_buffer, mem.obj);
}

static int cmp_pages(const void *a, const void *b)
{
	unsigned long pa = page_to_pfn(*(struct page *const *)a);
	unsigned long pb = page_to_pfn(*(struct page *const *)b);

	return pa < pb ? 1 : pa > pb ? -1 : 0;
}

/* Pieces in descending order: none has its physical neighbour behind it. */
static int alloc_scattered(struct dmaprobe_memory *mem, unsigned long nr,
			   unsigned int order, int node, gfp_t gfp)
{
	unsigned long nr_pieces = nr >> order, done, i;
	int ret = -ENOMEM;

	for (done = 0; done < nr_pieces; done++) {
		struct page *page;

		if (dmaprobe_cancelled()) {
			ret = -EINTR;
			goto err;
		}
		page = alloc_pages_node(node, gfp, order);
		if (!page)
			goto err;
		if (order)
			split_page(page, order);
		mem->pages[done] = page;
		cond_resched();
	}
	sort_nonatomic(mem->pages, nr_pieces, sizeof(*mem->pages), cmp_pages, NULL);

	/* From the end, so that no piece is overwritten before its turn. */
	while (done--) {
		struct page *page = mem->pages[done];

		for (i = 0; i < 1UL << order; i++)
			mem->pages[(done << order) + i] = page + i;
	}
	mem->nr_pages = nr;
	return 0;

err:
	while (done--)
		for (i = 0; i < 1UL << order; i++)
			put_page(mem->pages[done] + i);
	return ret;
}

static int alloc_contiguous(struct dmaprobe_memory *mem, unsigned long nr, int node, gfp_t gfp)
{
	unsigned int order = get_order(nr << PAGE_SHIFT);
	struct page *page;
	unsigned long i;

	page = alloc_pages_node(node, gfp, order);
	if (!page)
		return -ENOMEM;
	split_page(page, order);
	for (i = 0; i < nr; i++)
		mem->pages[i] = page + i;
	for (; i < 1UL << order; i++)
		__free_page(page + i);
	mem->nr_pages = nr;
	return 0;
}

/*
 * The device reaches the whole pages that are mapped, so nobody else may have a part of them.
 * What is too large for a cache gets pages of its own, from the start of a page on.
 */
static size_t kmalloc_bytes(const struct dmaprobe_buffer_alloc *cmd)
{
	return max_t(size_t, cmd->offset + cmd->length, KMALLOC_MAX_CACHE_SIZE + 1);
}

static int alloc_kmalloc(struct dmaprobe_buffer *buf, unsigned long nr,
			 const struct dmaprobe_buffer_alloc *cmd, int node, gfp_t gfp)
{
	unsigned long i;

	buf->kmem = kmalloc_node(kmalloc_bytes(cmd), gfp, node);
	if (!buf->kmem)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		buf->mem.pages[i] = virt_to_page(buf->kmem) + i;
	buf->mem.nr_pages = nr;
	return 0;
}

/* Make a buffer without pages, with room for @nr of them. */
struct dmaprobe_buffer *dmaprobe_buffer_new(struct dmaprobe_session *s,
					    unsigned long nr, unsigned long charge)
{
	struct dmaprobe_buffer *buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);

	if (!buf)
		return ERR_PTR(-ENOMEM);
	if (dmaprobe_charge(s, charge))
		goto err_free;
	buf->charged = charge;
	buf->mem.pages = kvmalloc_array(nr, sizeof(*buf->mem.pages), DMAPROBE_ARRAY_GFP);
	if (!buf->mem.pages)
		goto err_uncharge;
	return buf;

err_uncharge:
	dmaprobe_uncharge(s, charge);
err_free:
	kfree(buf);
	return ERR_PTR(-ENOMEM);
}

/* Free all but the struct. */
static void buffer_clear(struct dmaprobe_session *s, struct dmaprobe_buffer *buf)
{
	unsigned long i;

	if (buf->pinned)
		dmaprobe_unpin(s, buf);
	for (i = 0; !buf->pinned && !buf->kmem && i < buf->mem.nr_pages; i++) {
		put_page(buf->mem.pages[i]);
		cond_resched();
	}
	kfree(buf->kmem);
	dmaprobe_memory_free(&buf->mem);
	dmaprobe_uncharge(s, buf->charged);
}

/* Free a buffer that was never added. */
void dmaprobe_buffer_free(struct dmaprobe_session *s, struct dmaprobe_buffer *buf)
{
	buffer_clear(s, buf);
	kfree(buf);
}

static void buffer_release(struct dmaprobe_object *obj)
{
	buffer_clear(obj->session, obj_buffer(obj));
	kfree_rcu(obj_buffer(obj), mem.obj.rcu);
}

static void vma_open(struct vm_area_struct *vma)
{
	dmaprobe_object_hold(vma->vm_private_data);
}

static void vma_close(struct vm_area_struct *vma)
{
	dmaprobe_object_put(vma->vm_private_data);
}

static const struct vm_operations_struct buffer_vm_ops = {
	.open = vma_open,
	.close = vma_close,
};

static int buffer_mmap(struct dmaprobe_object *obj, struct vm_area_struct *vma, unsigned long first)
{
	struct dmaprobe_buffer *buf = obj_buffer(obj);
	struct dmaprobe_memory *mem = &buf->mem;
	unsigned long nr = vma_pages(vma);
	int ret;

	if (buf->pinned || buf->kmem)
		return -EINVAL;
	if (first >= mem->nr_pages || nr > mem->nr_pages - first)
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	ret = vm_insert_pages(vma, vma->vm_start, mem->pages + first, &nr);
	if (ret)
		return ret;
	dmaprobe_object_hold(obj);
	vma->vm_private_data = obj;
	vma->vm_ops = &buffer_vm_ops;
	return 0;
}

static int buffer_copy(struct dmaprobe_object *obj, const struct dmaprobe_copy *cmd,
		       const struct dmaprobe_copy_part *part)
{
	struct dmaprobe_buffer *buf = obj_buffer(obj);
	void *kernel;

	if (buf->pinned)
		return -EOPNOTSUPP;
	if (!dmaprobe_copy_fits(cmd, buf->mem.length))
		return -EINVAL;
	if (buf->kmem)
		kernel = buf->kmem + buf->mem.first_offset + part->offset;
	else
		kernel = page_address(buf->mem.pages[part->offset >> PAGE_SHIFT]) +
			 offset_in_page(part->offset);
	dmaprobe_copy_part(cmd, part, kernel);
	return 0;
}

static const struct dmaprobe_object_type buffer_type = {
	.release = buffer_release,
	.end_cmd = DMAPROBE_DESTROY,
	.has_pages = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_buffers),
	.mmap = buffer_mmap,
	.copy = buffer_copy,
};

/* Look a buffer up and hold it. */
struct dmaprobe_buffer *dmaprobe_buffer_get(struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_object *obj = dmaprobe_object_get(ucmd, id, &buffer_type);

	return IS_ERR(obj) ? ERR_CAST(obj) : obj_buffer(obj);
}

/*
 * Check that a range can be mapped as one. Returns 0; -EINVAL when the range is empty, leaves the
 * buffer or is not physically contiguous; -EACCES when the device could write what is read-only.
 */
int dmaprobe_buffer_range(const struct dmaprobe_buffer *buf, u64 offset,
			  u64 length, u32 dir, phys_addr_t *phys)
{
	const struct dmaprobe_memory *mem = &buf->mem;
	unsigned long first, last, pfn, i;

	if (!length || length > mem->length || offset > mem->length - length)
		return -EINVAL;
	offset += mem->first_offset;
	first = offset >> PAGE_SHIFT;
	last = (offset + length - 1) >> PAGE_SHIFT;
	pfn = page_to_pfn(mem->pages[first]);
	/* Without an index all pages follow each other. */
	if (mem->by_pfn)
		for (i = first + 1; i <= last; i++)
			if (page_to_pfn(mem->pages[i]) != pfn + (i - first))
				return -EINVAL;
	if (buf->read_only && dir != DMAPROBE_DIR_TO_DEVICE)
		return -EACCES;
	*phys = PFN_PHYS(pfn) + offset_in_page(offset);
	return 0;
}

/* What the members may be, for each kind; the node apart. */
static int check_alloc(const struct dmaprobe_buffer_alloc *cmd)
{
	bool scattered = cmd->kind == DMAPROBE_BUFFER_KIND_SCATTERED;

	if (cmd->kind > DMAPROBE_BUFFER_KIND_KMALLOC || !cmd->length)
		return -EINVAL;
	if (cmd->order > (scattered ? MAX_PAGE_ORDER : 0))
		return -EINVAL;
	if (cmd->kind == DMAPROBE_BUFFER_KIND_KMALLOC)
		return cmd->length > KMALLOC_MAX_LENGTH ||
		       cmd->offset >= PAGE_SIZE || cmd->offset % 8 ? -EINVAL : 0;
	if (cmd->offset || cmd->length & ((PAGE_SIZE << cmd->order) - 1))
		return -EINVAL;
	return cmd->length > (scattered ? BUFFER_MAX_LENGTH :
			      min(BUFFER_MAX_LENGTH, PAGE_SIZE << MAX_PAGE_ORDER)) ?
		-EINVAL : 0;
}

/*
 * Add a buffer whose pages are all there. Returns 0 or a negative errno, and the buffer
 * is as it was.
 */
int dmaprobe_buffer_add(struct dmaprobe_ucmd *ucmd, struct dmaprobe_buffer *buf)
{
	struct dmaprobe_session *s = ucmd->session;
	int ret = dmaprobe_memory_index(&buf->mem, BUFFER_GFP);

	if (ret)
		return ret;

	guard(rwsem_read)(&s->dd->group->lock);
	if (s->dd->unplugged)
		return -ENODEV;
	ret = dmaprobe_object_add(s, &buf->mem.obj, &buffer_type);
	if (ret)
		return ret;
	dmaprobe_object_made(ucmd, &buf->mem.obj);
	ucmd->length = buf->mem.length;
	return 0;
}

int dmaprobe_op_buffer_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_buffer_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	unsigned long nr, charge;
	struct dmaprobe_buffer *buf;
	int node = NUMA_NO_NODE;
	gfp_t gfp = BUFFER_GFP;
	int ret = check_alloc(cmd);

	if (ret)
		return ret;
	if (cmd->flags & DMAPROBE_BUFFER_ALLOC_NODE) {
		if (cmd->node >= MAX_NUMNODES)
			return -EINVAL;
		node = array_index_nospec(cmd->node, MAX_NUMNODES);
		if (!node_state(node, N_MEMORY))
			return -EINVAL;
		gfp |= __GFP_THISNODE;
	} else if (cmd->node) {
		return -EINVAL;
	}

	nr = PAGE_ALIGN(cmd->offset + cmd->length) >> PAGE_SHIFT;
	charge = nr;
	if (cmd->kind == DMAPROBE_BUFFER_KIND_KMALLOC)
		charge = 1UL << get_order(kmalloc_bytes(cmd));
	buf = dmaprobe_buffer_new(s, nr, charge);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	buf->mem.length = cmd->length;
	buf->mem.first_offset = cmd->offset;

	switch (cmd->kind) {
	case DMAPROBE_BUFFER_KIND_CONTIGUOUS:
		ret = alloc_contiguous(&buf->mem, nr, node, gfp);
		break;
	case DMAPROBE_BUFFER_KIND_SCATTERED:
		ret = alloc_scattered(&buf->mem, nr, cmd->order, node, gfp);
		break;
	default:
		ret = alloc_kmalloc(buf, nr, cmd, node, gfp);
		break;
	}
	if (!ret)
		ret = dmaprobe_buffer_add(ucmd, buf);
	if (ret) {
		dmaprobe_buffer_free(s, buf);
		return ret;
	}
	cmd->id = ucmd->made;
	cmd->mmap_offset = cmd->kind == DMAPROBE_BUFFER_KIND_KMALLOC ?
			   0 : dmaprobe_mmap_offset(cmd->id);
	return 0;
}
