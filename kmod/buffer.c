// SPDX-License-Identifier: GPL-2.0-only
/*
 * Buffers: memory for a device to reach, which the program can mmap.
 *
 * A buffer is an array of single pages, each with a reference count of its own,
 * so that the program's mappings can outlive it. The pages of a contiguous buffer
 * ascend by one. Those of a scattered buffer are sorted the other way round, so
 * that no page has its physical neighbour behind it and one can be found by
 * bisection.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "compat.h"
#include "private.h"

#define BUFFER_MAX_LENGTH	SZ_1G

static int cmp_pages(const void *a, const void *b)
{
	unsigned long pa = page_to_pfn(*(struct page *const *)a);
	unsigned long pb = page_to_pfn(*(struct page *const *)b);

	return pa < pb ? 1 : pa > pb ? -1 : 0;
}

static int alloc_scattered(struct dmaprobe_buffer *buf, unsigned long nr)
{
	for (; buf->mem.nr_pages < nr; buf->mem.nr_pages++) {
		struct page *page;

		if (fatal_signal_pending(current))
			return -EINTR;
		page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);
		if (!page)
			return -ENOMEM;
		buf->mem.pages[buf->mem.nr_pages] = page;
		cond_resched();
	}
	sort(buf->mem.pages, nr, sizeof(*buf->mem.pages), cmp_pages, NULL);
	return 0;
}

static int alloc_contiguous(struct dmaprobe_buffer *buf, unsigned long nr)
{
	unsigned int order = get_order(nr << PAGE_SHIFT);
	struct page *page;
	unsigned long i;

	page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN |
			   __GFP_RETRY_MAYFAIL, order);
	if (!page)
		return -ENOMEM;
	split_page(page, order);
	for (i = 0; i < nr; i++)
		buf->mem.pages[i] = page + i;
	for (; i < 1UL << order; i++)
		__free_page(page + i);
	buf->mem.nr_pages = nr;
	return 0;
}

static void free_pages_of(struct dmaprobe_buffer *buf)
{
	unsigned long i;

	for (i = 0; i < buf->mem.nr_pages; i++)
		put_page(buf->mem.pages[i]);
	dmaprobe_memory_free(&buf->mem);
}

static void buffer_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_buffer *buf =
		container_of(obj, struct dmaprobe_buffer, mem.obj);

	dmaprobe_uncharge(obj->session, buf->mem.nr_pages);
	free_pages_of(buf);
}

static int buffer_mmap(struct dmaprobe_object *obj, struct vm_area_struct *vma,
		       unsigned long first)
{
	struct dmaprobe_memory *mem = dmaprobe_obj_memory(obj);
	unsigned long nr = vma_pages(vma);

	if (first >= mem->nr_pages || nr > mem->nr_pages - first)
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_pages(vma, vma->vm_start, mem->pages + first, &nr);
}

const struct dmaprobe_object_type dmaprobe_buffer_type = {
	.release = buffer_release,
	.memory = true,
	.has_pages = true,
	.mmap = buffer_mmap,
};

/**
 * dmaprobe_buffer_get - look a buffer up
 * @ucmd: the call that names it
 * @id: its id
 *
 * Return: the buffer with a reference taken, or ERR_PTR(-ENOENT)
 */
struct dmaprobe_buffer *dmaprobe_buffer_get(const struct dmaprobe_ucmd *ucmd,
					    u32 id)
{
	struct dmaprobe_object *obj;

	obj = dmaprobe_object_get(ucmd, id, &dmaprobe_buffer_type);
	return IS_ERR(obj) ? ERR_CAST(obj) :
			     container_of(obj, struct dmaprobe_buffer, mem.obj);
}

/**
 * dmaprobe_buffer_range - check that a range can be mapped as one
 * @buf: the buffer
 * @offset: start of the range
 * @length: its length
 * @dir: what the device is to do with it
 * @phys: out: its physical address
 *
 * Return: 0, or -EINVAL when the range is empty, leaves the buffer or is not
 * physically contiguous
 */
int dmaprobe_buffer_range(const struct dmaprobe_buffer *buf, u64 offset,
			  u64 length, u32 dir, phys_addr_t *phys)
{
	u64 size = (u64)buf->mem.nr_pages << PAGE_SHIFT;

	if (!length || length > size || offset > size - length)
		return -EINVAL;
	if (buf->kind == DMAPROBE_BUFFER_SCATTERED &&
	    offset_in_page(offset) + length > PAGE_SIZE)
		return -EINVAL;
	*phys = page_to_phys(buf->mem.pages[offset >> PAGE_SHIFT]) +
		offset_in_page(offset);
	return 0;
}

int dmaprobe_op_buffer_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_buffer_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_buffer *buf;
	unsigned long nr;
	int ret;

	if (cmd->kind > DMAPROBE_BUFFER_SCATTERED)
		return -EINVAL;
	if (!cmd->length || offset_in_page(cmd->length) ||
	    cmd->length > BUFFER_MAX_LENGTH)
		return -EINVAL;
	if (cmd->kind == DMAPROBE_BUFFER_CONTIGUOUS &&
	    cmd->length > PAGE_SIZE << MAX_PAGE_ORDER)
		return -EINVAL;
	nr = cmd->length >> PAGE_SHIFT;

	buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);
	if (!buf)
		return -ENOMEM;
	buf->kind = cmd->kind;

	ret = dmaprobe_charge(s, nr);
	if (ret)
		goto err_free;
	buf->mem.pages = kvmalloc_array(nr, sizeof(*buf->mem.pages), GFP_KERNEL_ACCOUNT);
	if (!buf->mem.pages) {
		ret = -ENOMEM;
		goto err_uncharge;
	}
	if (cmd->kind == DMAPROBE_BUFFER_SCATTERED)
		ret = alloc_scattered(buf, nr);
	else
		ret = alloc_contiguous(buf, nr);
	if (ret)
		goto err_pages;
	buf->mem.length = cmd->length;
	ret = dmaprobe_memory_index(&buf->mem);
	if (ret)
		goto err_pages;
	ret = dmaprobe_object_reserve(s, &buf->mem.obj, &dmaprobe_buffer_type);
	if (ret)
		goto err_pages;

	cmd->id = buf->mem.obj.id;
	cmd->mmap_offset = dmaprobe_mmap_offset(&buf->mem.obj);
	ret = dmaprobe_respond(ucmd);
	if (ret)
		goto err_unreserve;
	dmaprobe_object_publish(ucmd, &buf->mem.obj);
	return 0;

err_unreserve:
	dmaprobe_object_unreserve(&buf->mem.obj);
err_pages:
	free_pages_of(buf);
err_uncharge:
	dmaprobe_uncharge(s, nr);
err_free:
	kfree(buf);
	return ret;
}

int dmaprobe_op_buffer_free(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_buffer_free *cmd = ucmd->cmd;

	if (cmd->__reserved)
		return -EINVAL;
	return dmaprobe_object_destroy(ucmd, cmd->id, &dmaprobe_buffer_type);
}
