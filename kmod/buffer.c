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
#include <linux/bsearch.h>
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "compat.h"
#include "private.h"

static unsigned int session_max_mib = 1024;
module_param(session_max_mib, uint, 0644);
MODULE_PARM_DESC(session_max_mib, "Memory a session may allocate, in MiB");

/* mmap offset: the id above, the offset in the buffer in the lower 32 bits. */
#define MMAP_ID_SHIFT		32
#define BUFFER_MAX_LENGTH	SZ_1G

/*
 * The session's own limit holds for everybody; RLIMIT_MEMLOCK for those who were
 * without CAP_IPC_LOCK when they opened the session.
 */
static int charge(struct dmaprobe_session *s, unsigned long nr)
{
	unsigned long limit = (unsigned long)READ_ONCE(session_max_mib)
			      << (20 - PAGE_SHIFT);

	if (atomic_long_add_return(nr, &s->nr_pages) > limit)
		goto over_session;
	if (s->user) {
		limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
		if (atomic_long_add_return(nr, &s->user->locked_vm) > limit)
			goto over_user;
	}
	return 0;

over_user:
	atomic_long_sub(nr, &s->user->locked_vm);
over_session:
	atomic_long_sub(nr, &s->nr_pages);
	return -ENOMEM;
}

static void uncharge(struct dmaprobe_session *s, unsigned long nr)
{
	if (s->user)
		atomic_long_sub(nr, &s->user->locked_vm);
	atomic_long_sub(nr, &s->nr_pages);
}

static int cmp_pages(const void *a, const void *b)
{
	unsigned long pa = page_to_pfn(*(struct page *const *)a);
	unsigned long pb = page_to_pfn(*(struct page *const *)b);

	return pa < pb ? 1 : pa > pb ? -1 : 0;
}

static int alloc_scattered(struct dmaprobe_buffer *buf, unsigned long nr)
{
	for (; buf->nr_pages < nr; buf->nr_pages++) {
		struct page *page;

		if (fatal_signal_pending(current))
			return -EINTR;
		page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);
		if (!page)
			return -ENOMEM;
		buf->pages[buf->nr_pages] = page;
		cond_resched();
	}
	sort(buf->pages, nr, sizeof(*buf->pages), cmp_pages, NULL);
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
		buf->pages[i] = page + i;
	for (; i < 1UL << order; i++)
		__free_page(page + i);
	buf->nr_pages = nr;
	return 0;
}

static void free_pages_of(struct dmaprobe_buffer *buf)
{
	unsigned long i;

	for (i = 0; i < buf->nr_pages; i++)
		put_page(buf->pages[i]);
	kvfree(buf->pages);
}

static void buffer_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_buffer *buf =
		container_of(obj, struct dmaprobe_buffer, obj);

	uncharge(obj->session, buf->nr_pages);
	free_pages_of(buf);
}

const struct dmaprobe_object_type dmaprobe_buffer_type = {
	.release = buffer_release,
	.memory = true,
	.stats = offsetof(struct dmaprobe_stats, nr_buffers),
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
			     container_of(obj, struct dmaprobe_buffer, obj);
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
	u64 size = (u64)buf->nr_pages << PAGE_SHIFT;

	if (!length || length > size || offset > size - length)
		return -EINVAL;
	if (buf->kind == DMAPROBE_BUFFER_SCATTERED &&
	    offset_in_page(offset) + length > PAGE_SIZE)
		return -EINVAL;
	*phys = page_to_phys(buf->pages[offset >> PAGE_SHIFT]) +
		offset_in_page(offset);
	return 0;
}

/**
 * dmaprobe_buffer_find - find a physical address in a buffer
 * @buf: the buffer
 * @phys: the physical address
 * @offset: out: where it is in the buffer
 *
 * Return: whether it is there
 */
bool dmaprobe_buffer_find(const struct dmaprobe_buffer *buf, phys_addr_t phys,
			  u64 *offset)
{
	unsigned long pfn = PHYS_PFN(phys), index;

	if (buf->kind == DMAPROBE_BUFFER_SCATTERED) {
		struct page *page, **found;

		if (!pfn_valid(pfn))
			return false;
		page = pfn_to_page(pfn);
		found = bsearch(&page, buf->pages, buf->nr_pages,
				sizeof(*buf->pages), cmp_pages);
		if (!found)
			return false;
		index = found - buf->pages;
	} else {
		index = pfn - page_to_pfn(buf->pages[0]);
		if (index >= buf->nr_pages)
			return false;
	}
	*offset = ((u64)index << PAGE_SHIFT) + offset_in_page(phys);
	return true;
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

	ret = charge(s, nr);
	if (ret)
		goto err_free;
	buf->pages = kvmalloc_array(nr, sizeof(*buf->pages), GFP_KERNEL_ACCOUNT);
	if (!buf->pages) {
		ret = -ENOMEM;
		goto err_uncharge;
	}
	if (cmd->kind == DMAPROBE_BUFFER_SCATTERED)
		ret = alloc_scattered(buf, nr);
	else
		ret = alloc_contiguous(buf, nr);
	if (ret)
		goto err_pages;
	ret = dmaprobe_object_reserve(s, &buf->obj, &dmaprobe_buffer_type);
	if (ret)
		goto err_pages;

	cmd->id = buf->obj.id;
	cmd->mmap_offset = (u64)buf->obj.id << MMAP_ID_SHIFT;
	ret = dmaprobe_respond(ucmd);
	if (ret)
		goto err_unreserve;
	dmaprobe_object_publish(ucmd, &buf->obj);
	return 0;

err_unreserve:
	dmaprobe_object_unreserve(&buf->obj);
err_pages:
	free_pages_of(buf);
err_uncharge:
	uncharge(s, nr);
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

int dmaprobe_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dmaprobe_session *s = file->private_data;
	struct dmaprobe_ucmd lookup = { .session = s };
	unsigned long first, nr = vma_pages(vma);

	if (!READ_ONCE(s->dd->pdev))
		return -ENODEV;
	/* A private mapping would show the device's writes only by half. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;

	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) =
		dmaprobe_buffer_get(&lookup, vma->vm_pgoff >>
					     (MMAP_ID_SHIFT - PAGE_SHIFT));
	if (IS_ERR(buf))
		return PTR_ERR(buf);

	first = vma->vm_pgoff & (BIT(MMAP_ID_SHIFT - PAGE_SHIFT) - 1);
	if (first >= buf->nr_pages || nr > buf->nr_pages - first)
		return -EINVAL;

	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_pages(vma, vma->vm_start, buf->pages + first, &nr);
}
