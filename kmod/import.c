// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of dma-bufs, whoever exported them.
 *
 * An importer maps, is asked to unmap, and unmaps under the lock of the dma-buf's
 * reservation object. That is not held while the exporter's fences are waited for.
 */
#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

/* How long to wait for an exporter that moves the memory. */
#define IMPORT_TIMEOUT	(10 * HZ)

struct dmaprobe_import {
	struct dmaprobe_object obj;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;	/* NULL: taken away; read under dmaprobe_group::walk too */
	u8 dir;
};

static void import_unmap(struct dmaprobe_import *imp)
{
	dma_resv_assert_held(imp->dmabuf->resv);
	if (imp->sgt)
		dma_buf_unmap_attachment(imp->attach, imp->sgt, imp->dir);
	imp->sgt = NULL;
}

/*
 * The memory is to move or to go for good: in both cases it is gone. The exporter does
 * not hold our dmaprobe_group::lock, which would keep walks away.
 */
static void import_invalidate(struct dma_buf_attachment *attach)
{
	struct dmaprobe_import *imp = attach->importer_priv;

	guard(mutex)(&imp->obj.session->dd->group->walk);
	import_unmap(imp);
}

/* The device that is attached, by us. */
const struct dmaprobe_device *dmaprobe_import_device(const struct dma_buf_attachment *attach)
{
	const struct dmaprobe_import *imp = attach->importer_priv;

	return imp->obj.session->dd;
}

const struct dma_buf_attach_ops dmaprobe_import_ops = {
	.DMAPROBE_DMA_BUF_INVALIDATE = import_invalidate,
};

static void import_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_import *imp = container_of(obj, struct dmaprobe_import, obj);

	dma_resv_lock(imp->dmabuf->resv, NULL);
	import_unmap(imp);
	dma_resv_unlock(imp->dmabuf->resv);
	dma_buf_detach(imp->dmabuf, imp->attach);
	dma_buf_put(imp->dmabuf);
	kfree_rcu(imp, obj.rcu);
}

static int import_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_import *imp = container_of(obj, struct dmaprobe_import, obj);
	struct sg_table none = {}, *sgt;

	guard(mutex)(&obj->session->dd->group->segments);
	guard(mutex)(&obj->session->dd->group->walk);
	sgt = imp->sgt ?: &none;
	return dmaprobe_reply_segments(ucmd, sgt->sgl, sgt->nents);
}

static const struct dmaprobe_object_type import_type = {
	.release = import_release,
	.end_cmd = DMAPROBE_UNMAP,
	.has_address = true,
	.may_block = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_mappings),
	.segments = import_segments,
};

/*
 * Whether the device can be given a dma-buf whose pages we do not know: an exporter
 * need not look at the limits of segments, and nobody would sync what is bounced.
 */
static int check_foreign(const struct dmaprobe_device *dd, const struct dma_buf *dmabuf)
{
	struct device *dev = &dd->pdev->dev;

	if (!dmaprobe_one_segment(dev, dmabuf->size))
		return -EINVAL;
	if (dmaprobe_translates(dd) || (dd->direct_max == SIZE_MAX && !dma_addressing_limited(dev)))
		return 0;
	return -EIO;
}

/*
 * Map it. Returns 1 while its exporter is moving it. What was done is undone by
 * import_unmap(); an exporter's -EAGAIN is none to a ring.
 */
static int import_map(struct dmaprobe_import *imp)
{
	struct sg_table *sgt = dma_buf_map_attachment(imp->attach, imp->dir);

	if (IS_ERR(sgt))
		return PTR_ERR(sgt) == -EAGAIN ? -EBUSY : PTR_ERR(sgt);
	imp->sgt = sgt;
	return !dma_resv_test_signaled(imp->dmabuf->resv, DMA_RESV_USAGE_KERNEL);
}

/* Attach the device and map once, with the device there. Returns 1 as import_map(). */
static int import_add(struct dmaprobe_ucmd *ucmd, struct dmaprobe_import *imp)
{
	struct dmaprobe_map_dmabuf *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	int ret;

	if (s->dd->unplugged)
		return -ENODEV;
	imp->obj.nr_addresses = dmaprobe_export_pieces(imp->dmabuf);
	if (!imp->obj.nr_addresses) {
		ret = check_foreign(s->dd, imp->dmabuf);
		if (ret)
			return ret;
	}
	/* Others may map it page by page, and so does the kernel for untrusted devices. */
	if (!imp->obj.nr_addresses || s->dd->direct_max != SIZE_MAX)
		imp->obj.nr_addresses = PFN_UP(imp->dmabuf->size);
	ret = dmaprobe_object_add(s, &imp->obj, &import_type);
	if (ret)
		return ret;
	imp->attach = dma_buf_dynamic_attach(imp->dmabuf, dmaprobe_dma_dev(s),
					     &dmaprobe_import_ops, imp);
	if (IS_ERR(imp->attach)) {
		ret = PTR_ERR(imp->attach);
		goto err_cancel;
	}
	ret = dma_resv_lock_interruptible(imp->dmabuf->resv, NULL);
	if (ret) {
		ret = -EINTR;
		goto err_detach;
	}
	ret = import_map(imp);
	if (ret) {
		import_unmap(imp);
	} else {
		cmd->nr_segments = imp->sgt->nents;
		ucmd->iova = sg_dma_address(imp->sgt->sgl);
	}
	dma_resv_unlock(imp->dmabuf->resv);
	if (ret)
		goto err_detach;

	cmd->id = imp->obj.id;
	cmd->length = imp->dmabuf->size;
	dmaprobe_object_made(ucmd, &imp->obj);
	ucmd->length = cmd->length;
	return 0;

err_detach:
	dma_buf_detach(imp->dmabuf, imp->attach);
err_cancel:
	dmaprobe_object_cancel(&imp->obj);
	return ret;
}

int dmaprobe_op_map_dmabuf(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_map_dmabuf *cmd = ucmd->cmd;
	unsigned long deadline = jiffies + IMPORT_TIMEOUT;
	long left = IMPORT_TIMEOUT;
	struct dmaprobe_import *imp;
	int ret;

	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;
	imp = kzalloc_obj(*imp, GFP_KERNEL_ACCOUNT);
	if (!imp)
		return -ENOMEM;
	imp->dir = cmd->dir;
	imp->dmabuf = dma_buf_get(cmd->fd);
	if (IS_ERR(imp->dmabuf)) {
		ret = PTR_ERR(imp->dmabuf);
		goto err_free;
	}
	/* The descriptor's mode is the permission that its exporter gave. */
	ret = -EACCES;
	if (!(imp->dmabuf->file->f_mode & FMODE_WRITE) &&
	    (cmd->dir != DMAPROBE_DIR_TO_DEVICE ||
	     (DMAPROBE_ATTACH_MAPS && !dmaprobe_export_pieces(imp->dmabuf))))
		goto err_put;

	for (;;) {
		scoped_guard(rwsem_read, &ucmd->session->dd->group->lock)
			ret = import_add(ucmd, imp);
		if (!ret)
			return 0;
		if (ret < 0)
			break;
		left = dmaprobe_interrupted() ? -EINTR :
		       dma_resv_wait_timeout(imp->dmabuf->resv, DMA_RESV_USAGE_KERNEL, true, left);
		ret = left < 0 ? -EINTR : -ETIMEDOUT;
		left = (long)(deadline - jiffies);
		if (ret == -EINTR || left <= 0)
			break;
	}

err_put:
	dma_buf_put(imp->dmabuf);
err_free:
	kfree_rcu(imp, obj.rcu);
	return ret;
}

DMAPROBE_IMPORT_NS_DMA_BUF;
